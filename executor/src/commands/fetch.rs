//! `ks fetch`: brings whole files to this node, with a progress bar for each.
use super::{Format, connect, print_json, r#where::path_bytes};
use anyhow::bail;
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ks_executor::control::failed;
use ks_executor::protocol::{Answer, Ask, Tell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// `ks fetch`.
#[derive(Args, Debug)]
pub struct FetchArgs {
    /// Files in the tree
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    format: Format,
}

/// A bar for each file, made when it is first heard of.
pub struct Bars {
    all: MultiProgress,
    by_path: HashMap<Vec<u8>, ProgressBar>,
}

impl Bars {
    /// `hidden`: nothing is drawn.
    pub fn new(hidden: bool) -> Self {
        let all = MultiProgress::new();
        if hidden {
            all.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        Self {
            all,
            by_path: HashMap::new(),
        }
    }

    /// A file has come so far.
    pub fn update(&mut self, path: &[u8], have: u64, size: u64) {
        let bar = self.by_path.entry(path.to_vec()).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            )
            .expect("a valid template");
            let bar = ProgressBar::new(size).with_style(style);
            bar.set_message(String::from_utf8_lossy(path).into_owned());
            self.all.add(bar)
        });
        bar.set_position(have);
        if have >= size {
            bar.finish();
        }
    }
}

impl FetchArgs {
    /// Returns when all of them are whole here.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(self.paths.first().map(PathBuf::as_path)).await?;
        let started = Instant::now();
        let sent = node
            .send(
                Ask::Fetch {
                    paths: path_bytes(&self.paths)?,
                },
                &[],
            )
            .await?;
        let mut bars = Bars::new(self.format.json);
        loop {
            let (tell, _) = tokio::select! {
                next = node.next() => next?,
                _ = tokio::signal::ctrl_c() => bail!("interrupted; what has come is kept"),
            };
            match tell {
                Tell::Progress {
                    path, have, size, ..
                } => bars.update(&path, have, size),
                Tell::Reply { request, answer } if request == sent => match failed(answer)? {
                    Answer::Done => break,
                    other => bail!("the node said {other:?}"),
                },
                _ => {}
            }
        }
        if self.format.json {
            let seconds = started.elapsed().as_secs_f64();
            print_json(
                &serde_json::json!({"node": node.hello.node, "files": bars.by_path.len(), "seconds": seconds}),
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
