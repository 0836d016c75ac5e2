//! `ks run`: runs a shell command where the data is; its output and exit status come back.
use super::{connect, number, shown_path, text, r#where::path_bytes};
use anyhow::{Context, bail};
use clap::Args;
use ks_executor::control::{Control, absolute, failed};
use ks_executor::protocol::{
    Answer, Ask, Call, FunctionRef, NOTE_STREAM, Outcome, Part, Payload, Tell, Update,
};
use serde_bytes::ByteBuf;
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shown below the flags.
pub const EXAMPLES: &str = "\
Examples:
  ks run --near /ks/mylarge/dataset.h5 -- h5ls -r /ks/mylarge/dataset.h5
  ks run --node host2 -- df -h /ks";

/// What a program exits with that SIGINT ended.
const INTERRUPTED: i32 = 130;
/// The Python function that runs a command on a worker.
const RUN_COMMAND: &str = "kitchensink.builtins:run_command";

/// `ks run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Run where this file is (repeat for several) [default: the paths among the command's arguments]
    #[arg(long, value_name = "PATH")]
    near: Vec<PathBuf>,
    /// Run on the node of this name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl RunArgs {
    /// Returns the command's own exit status.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut control = connect(self.near.first().map(PathBuf::as_path)).await?;
        for path in &self.near {
            path.symlink_metadata()
                .with_context(|| format!("--near {}", path.display()))?;
        }
        let near = self.near_holders(&mut control).await?;
        let call = self.call(&control)?;
        let job = call.job.clone();
        // Whatever ends this program ends the command, too.
        let tie = Ask::Tie {
            jobs: vec![job.clone()],
        };
        control.send(tie, &[]).await?;
        let sent = control
            .send(
                Ask::Submit {
                    functions: Vec::new(),
                    calls: vec![call],
                },
                &[],
            )
            .await?;
        let mut cancelled = false;
        let mut is_cut = false;
        loop {
            let next = tokio::select! {
                next = control.next() => next?,
                _ = tokio::signal::ctrl_c() => {
                    // The second time without waiting for the command's end, which comes all the same.
                    if std::mem::replace(&mut cancelled, true) {
                        std::process::exit(INTERRUPTED);
                    }
                    control.send(Ask::Cancel { jobs: vec![job.clone()], all: false }, &[]).await?;
                    continue;
                }
            };
            match next {
                (Tell::Reply { request, answer }, _) if request == sent => drop(failed(answer)?),
                (Tell::Update { job: of, update }, frame) if of == job => {
                    if let Some(node) = ran_on(&update) {
                        near.tell(node);
                    }
                    if cancelled && is_cancelled(&update) {
                        return Ok(ExitCode::from(INTERRUPTED as u8));
                    }
                    is_cut |=
                        matches!(&update, Update::Output { stream, .. } if *stream == NOTE_STREAM);
                    match show(update, &frame).await? {
                        Some(_) if is_cut => bail!(
                            "not all of the output came (see above): have the command write to a file in the tree"
                        ),
                        Some(status) => return Ok(status),
                        None => {}
                    }
                }
                _ => {}
            }
        }
    }

    /// Who has the files of `--near`. Error: a file that only nodes have which are gone.
    async fn near_holders(&self, control: &mut Control) -> anyhow::Result<NearHolders> {
        let mut near = NearHolders::default();
        if self.node.is_some() {
            return Ok(near);
        }
        for path in path_bytes(&self.near)? {
            let ask = Ask::Where {
                paths: vec![path],
                md5: false,
            };
            let Answer::Where(rows) = control.ask(ask).await? else {
                bail!("the node did not say who has the files");
            };
            for row in &rows {
                near.note(row, &control.hello.mountpoint)?;
            }
        }
        Ok(near)
    }

    fn call(&self, control: &Control) -> anyhow::Result<Call> {
        let tree = &control.hello.mountpoint;
        let here = std::env::current_dir().ok();
        let here = here.filter(|directory| directory.starts_with(tree));
        let here_text = here.as_ref().map(|directory| directory.to_string_lossy());
        let arguments = serde_json::json!({"args": [self.command], "kwargs": {"cwd": here_text}});
        let near: Vec<PathBuf> = self
            .near
            .iter()
            .map(|path| absolute(path))
            .collect::<Result<_, _>>()?;
        let bytes = |path: &PathBuf| ByteBuf::from(path.as_os_str().as_bytes());
        // Relative names mean files only where the command is given in the tree, and are there.
        let named = self
            .command
            .iter()
            .filter_map(|word| match (Path::new(word).is_absolute(), &here) {
                (true, _) => Some(PathBuf::from(word)),
                (false, Some(here)) => Some(here.join(word)).filter(|path| path.exists()),
                (false, None) => None,
            })
            .filter(|path| path.starts_with(tree));
        let paths = if near.is_empty() {
            named.map(|path| bytes(&path)).collect()
        } else {
            near.iter().map(bytes).collect()
        };
        let mut random = [0u8; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .context("random bytes")?;
        Ok(Call {
            job: hex::encode(random),
            name: self.command.join(" "),
            function: FunctionRef::Name(RUN_COMMAND.into()),
            format: "json".into(),
            args: Payload {
                parts: vec![Part::Inline(ByteBuf::from(serde_json::to_vec(&arguments)?))],
            },
            paths,
            locality: Vec::new(),
            mountpoint: Some(bytes(&control.hello.mountpoint)),
            queue: "default".into(),
            node: self.node.clone(),
            timeout_ms: None,
            retries: 0,
            priority: 0,
            data_threshold: None,
            no_route_data: false,
            intermediate_results: true,
            paced: true,
            python: None,
            texts: Vec::new(),
            kept: Vec::new(),
            keep: None,
            outer: None,
        })
    }
}

/// Who has the files of `--near`, by name; empty: nothing is to be said.
#[derive(Default)]
struct NearHolders {
    holders: BTreeSet<String>,
    is_told: Cell<bool>,
}

impl NearHolders {
    /// A row of `Where`. Error: nobody who is there has all of the file.
    fn note(&mut self, row: &Value, tree: &Path) -> anyhow::Result<()> {
        let size = number(row, "size");
        let is = |copy: &Value, field| copy.get(field) == Some(&Value::Bool(true));
        let copies = row.get("copies").and_then(Value::as_array);
        let whole: Vec<&Value> = copies
            .into_iter()
            .flatten()
            .filter(|copy| is(copy, "home") || is(copy, "current") && number(copy, "bytes") >= size)
            .collect();
        if size == 0 || whole.is_empty() {
            return Ok(());
        }
        let named = |copies: &[&Value]| -> Vec<String> {
            copies.iter().map(|copy| text(copy, "node")).collect()
        };
        let (living, gone): (Vec<&Value>, Vec<&Value>) =
            whole.iter().partition(|copy| is(copy, "alive"));
        if living.is_empty() {
            bail!(
                "--near {}: {} alone has it, and is gone: start that node again (without --near the command runs elsewhere)",
                tree.join(shown_path(row)).display(),
                named(&gone).join(" or ")
            );
        }
        self.holders.extend(named(&living));
        Ok(())
    }

    /// The command runs on that node: where it has none of the files, that is said, once.
    fn tell(&self, node: &str) {
        if self.holders.is_empty() || self.holders.contains(node) || self.is_told.replace(true) {
            return;
        }
        let holders: Vec<&str> = self.holders.iter().map(String::as_str).collect();
        eprintln!(
            "ks: runs on {node}, not near the files: {} has them, and is busy or does not answer",
            holders.join(" or ")
        );
    }
}

/// The node on which the command is known to run from here on.
fn ran_on(update: &Update) -> Option<&str> {
    match update {
        Update::Started { node, .. } => Some(node),
        _ => None,
    }
}

/// Whether it ended without a status of its own.
fn is_cancelled(update: &Update) -> bool {
    matches!(
        update,
        Update::Ended {
            outcome: Outcome::Failed { .. } | Outcome::Raised { .. },
            ..
        }
    )
}

/// Passes on what happened; the exit status when it is the end.
async fn show(update: Update, frame: &[bytes::Bytes]) -> anyhow::Result<Option<ExitCode>> {
    match update {
        Update::Output {
            stream: 1, data, ..
        } => write(std::io::stdout(), data.into_vec()).await?,
        Update::Output { data, .. } => write(std::io::stderr(), data.into_vec()).await?,
        Update::Log { message, .. } => eprintln!("{message}"),
        Update::Started { .. } => {}
        Update::Ended {
            outcome: Outcome::Returned(result),
            ..
        } => {
            std::io::stdout().flush()?;
            return Ok(Some(exit_code(&result, frame)?));
        }
        Update::Ended {
            outcome: Outcome::Raised {
                type_name, message, ..
            },
            ..
        } => bail!("{type_name}: {message}"),
        Update::Ended {
            outcome: Outcome::Failed { kind, message, .. },
            ..
        } => bail!("{kind}: {message}"),
    }
    Ok(None)
}

/// Writes output where it may take its time: whoever reads it slowly slows the command down. Ctrl-C ends this program all the same, and
/// so the command.
async fn write(mut to: impl Write + Send + 'static, data: Vec<u8>) -> anyhow::Result<()> {
    let writing = tokio::task::spawn_blocking(move || {
        to.write_all(&data)?;
        to.flush()
    });
    tokio::select! {
        written = writing => Ok(written??),
        _ = tokio::signal::ctrl_c() => std::process::exit(INTERRUPTED),
    }
}

/// The status that the function returned, as JSON.
fn exit_code(result: &Payload, frame: &[bytes::Bytes]) -> anyhow::Result<ExitCode> {
    let data = match result.parts.first() {
        Some(Part::Inline(data)) => data.as_slice(),
        Some(Part::Segment(index)) => frame.get(*index as usize).context("a cut answer")?,
        _ => bail!("the command's status did not come back"),
    };
    let status: u8 = serde_json::from_slice(data).context("the command's status")?;
    Ok(ExitCode::from(status))
}
