//! `ks jobs`, `ks logs`, `ks cancel`: the calls that are going on, what one wrote, and how to end them.
use super::{Format, connect, number, print_json, print_table, text};
use anyhow::bail;
use clap::Args;
use ks_executor::protocol::{Answer, Ask};
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// `ks jobs`.
#[derive(Args, Debug)]
pub struct JobsArgs {
    /// Also say why each was placed as it was, and what it would cost elsewhere
    #[arg(long)]
    why: bool,
    /// Show at most so many, the oldest first
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    format: Format,
}

impl JobsArgs {
    /// Asks the node and prints a row for each job that has not ended.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(None).await?;
        let ask = Ask::Jobs { limit: self.limit };
        let (total, jobs) = match node.ask(ask).await? {
            Answer::Jobs { total, jobs } => (total, jobs),
            other => bail!("the node said {other:?}"),
        };
        if self.format.json {
            print_json(&serde_json::json!({"total": total, "jobs": jobs}))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut headings = vec!["job", "function", "state", "queue", "node", "age"];
        if self.why {
            headings.extend(["why", "bytes to fetch"]);
        }
        let rows = jobs.iter().map(|job| row(job, self.why)).collect();
        print_table(&headings, rows);
        if total > jobs.len() as u64 {
            println!("{total} in all; see more with --limit");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(job: &Value, why: bool) -> Vec<String> {
    let age = std::time::Duration::from_millis(number(job, "age_ms"));
    let mut row = vec![
        text(job, "job"),
        text(job, "function"),
        text(job, "state"),
        text(job, "queue"),
        text(job, "node"),
        format!("{:.1} s", age.as_secs_f64()),
    ];
    if why {
        let costs = job.get("costs").and_then(Value::as_object);
        let costs = costs.into_iter().flatten();
        row.push(text(job, "why"));
        row.push(
            costs
                .map(|(node, bytes)| format!("{node}: {bytes}"))
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    row
}

/// `ks logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The job's id
    #[arg(value_name = "JOB")]
    job: String,
}

impl LogsArgs {
    /// Writes what the job wrote to standard output and error here, and says how it ended.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(None).await?;
        let ask = Ask::Logs {
            job: self.job.clone(),
        };
        let (ended, pieces, omitted_bytes) = match node.ask(ask).await? {
            Answer::Logs {
                ended,
                pieces,
                omitted_bytes,
            } => (ended, pieces, omitted_bytes),
            other => bail!("the node said {other:?}"),
        };
        if omitted_bytes > 0 {
            eprintln!("ks: {omitted_bytes} bytes before this are not kept");
        }
        for (stream, bytes) in pieces {
            match stream {
                1 => std::io::stdout().write_all(&bytes)?,
                _ => std::io::stderr().write_all(&bytes)?,
            }
        }
        std::io::stdout().flush()?;
        eprintln!("ks: {} {ended}", self.job);
        Ok(ExitCode::SUCCESS)
    }
}

/// How long cancelling may take: there may be a million jobs.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1_000);

/// `ks cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The jobs' ids
    #[arg(
        value_name = "JOB",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    jobs: Vec<String>,
    /// Every job of the cluster
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

impl CancelArgs {
    /// Cancels, and says which were still going. Fails where jobs were named and none of them was.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(None).await?;
        let ask = Ask::Cancel {
            jobs: self.jobs.clone(),
            all: self.all,
        };
        let cancelled = match node.ask_within(ask, CANCEL_TIMEOUT).await? {
            Answer::Cancelled { jobs } => jobs,
            other => bail!("the node said {other:?}"),
        };
        if self.format.json {
            print_json(&cancelled)?;
        } else {
            cancelled.iter().for_each(|job| println!("{job}"));
        }
        for job in self.jobs.iter().filter(|job| !cancelled.contains(job)) {
            eprintln!("ks: {job}: has ended, or was never there");
        }
        Ok(match self.all || !cancelled.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}
