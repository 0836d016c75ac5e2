//! The `ks` program: reads the command line, runs one command, and says how it went in its exit status:
//! 0 done, 1 it failed, 2 used wrongly (or what the command that `ks run` ran says).
mod commands;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use ks_executor::config::{self, MountArgs};
use ks_executor::daemon;
use std::process::ExitCode;

/// One tree over many machines' disks, and calls that run where the files are.
#[derive(Parser)]
#[command(name = "ks", version, propagate_version = true, infer_long_args = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node: its files appear in the tree, and calls run on it
    #[command(after_help = commands::mount::EXAMPLES)]
    Mount(Box<MountArgs>),
    /// Unmount the tree and end its node
    Umount(commands::umount::UmountArgs),
    /// What this machine's node does
    Status(commands::status::StatusArgs),
    /// The nodes of the cluster
    Nodes(commands::nodes::NodesArgs),
    /// Who holds files, how much of them, which version
    Where(commands::r#where::WhereArgs),
    /// Bring whole files to this node
    Fetch(commands::fetch::FetchArgs),
    /// Spread files over other nodes
    Push(commands::copies::PushArgs),
    /// Give up this node's copies of files; never the last one
    Drop(commands::copies::DropArgs),
    /// Keep this node's copies of files whatever else must go
    Pin(commands::copies::PinArgs),
    /// Keep several copies of files, or of the files below directories
    Replicate(commands::copies::ReplicateArgs),
    /// Re-read every copy of files, check it, and mend it from a good one
    Verify(commands::copies::VerifyArgs),
    /// Rebuild the catalog from the nodes' data directories
    #[command(after_help = commands::recover::EXAMPLES)]
    Recover(commands::recover::RecoverArgs),
    /// Run a shell command where the data is; its standard input is empty
    #[command(after_help = commands::run::EXAMPLES)]
    Run(commands::run::RunArgs),
    /// Make a cluster key, or a key for a machine that calls and is no node
    #[command(after_help = commands::key::EXAMPLES)]
    Key(commands::key::KeyArgs),
    /// The calls that wait or run
    Jobs(commands::jobs::JobsArgs),
    /// What a call wrote, and how it ended
    Logs(commands::jobs::LogsArgs),
    /// End calls
    Cancel(commands::jobs::CancelArgs),
    /// What is wrong here, and how to mend it
    Doctor(commands::doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Mount(args) => commands::mount::run(*args),
            Command::Umount(args) => args.run(),
            Command::Status(args) => commands::block_on(args.run()),
            Command::Nodes(args) => commands::block_on(args.run()),
            Command::Where(args) => commands::block_on(args.run()),
            Command::Fetch(args) => commands::block_on(args.run()),
            Command::Push(args) => commands::block_on(args.run()),
            Command::Drop(args) => commands::block_on(args.run()),
            Command::Pin(args) => commands::block_on(args.run()),
            Command::Replicate(args) => commands::block_on(args.run()),
            Command::Verify(args) => commands::block_on(args.run()),
            Command::Recover(args) => commands::block_on(args.run()),
            Command::Run(args) => commands::block_on(args.run()),
            Command::Key(args) => args.run(),
            Command::Jobs(args) => commands::block_on(args.run()),
            Command::Logs(args) => commands::block_on(args.run()),
            Command::Cancel(args) => commands::block_on(args.run()),
            Command::Doctor(args) => commands::block_on(args.run()),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "ks", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn main() -> ExitCode {
    let command = match config::with_config_file(Cli::command()) {
        Ok(command) => command,
        Err(error) => return wrong_use(&error),
    };
    let cli = match Cli::from_arg_matches(&command.get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if !matches!(cli.command, Command::Mount(_)) {
        end_quietly_when_nobody_reads();
    }
    // Scripts that end machines call it among other unmounters.
    let program = match cli.command {
        Command::Umount(_) => "ks umount",
        _ => "ks",
    };
    match cli.command.run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{program}: {}", daemon::described(&error));
            match error.is::<config::WrongUse>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// `ks nodes | head -1` is no error: as other programs, it ends by SIGPIPE (which Rust ignores).
fn end_quietly_when_nobody_reads() {
    // SAFETY: a plain system call before any thread is started; SIG_DFL is a valid disposition.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn wrong_use(error: &anyhow::Error) -> ExitCode {
    eprintln!("ks: {}", daemon::described(error));
    ExitCode::from(2)
}
