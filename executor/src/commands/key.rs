//! `ks key`: the cluster's secret, and keys for machines that call and are no nodes.
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use ks_executor::config::{WrongUse, default_key_file};
use ks_transport::key::{ClientKey, ClusterKey};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown below the flags.
pub const EXAMPLES: &str = "\
Examples:
  ks key new                         a cluster key, before the first mount; copy it to each machine that shall join
  ks key client alice                alice.key: for a machine that calls (KS_CLUSTER_KEY=alice.key), and is no node";

/// `ks key`.
#[derive(Args, Debug)]
pub struct KeyArgs {
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand, Debug)]
enum Which {
    /// Make a cluster key (the first `ks mount` does it, too)
    New {
        /// Where it is written [default: ~/.config/ks/cluster.key]
        #[arg(long, value_name = "FILE", env = "KS_CLUSTER_KEY")]
        cluster_key: Option<PathBuf>,
    },
    /// Make a key for a machine that calls and is no node
    ///
    /// Calls run as the user of the node that runs them: who has this key can read, change and delete files by calls.
    /// It cannot become a node, mount the tree or find out the cluster key.
    Client {
        /// Whose it is, as nodes will log it
        name: String,
        /// Where it is written [default: NAME.key]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The cluster key it is derived from [default: ~/.config/ks/cluster.key]
        #[arg(long, value_name = "FILE", env = "KS_CLUSTER_KEY")]
        cluster_key: Option<PathBuf>,
    },
}

impl KeyArgs {
    /// Writes the file (0600) and says where it is.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.which {
            Which::New { cluster_key } => {
                let file = cluster_key.map_or_else(default_key_file, Ok)?;
                let (key, made) = ClusterKey::load_or_create(&file)?;
                if !made {
                    bail!(
                        "{}: there is a cluster key already ({})",
                        file.display(),
                        key.fingerprint()
                    );
                }
                println!("{} ({})", file.display(), key.fingerprint());
            }
            Which::Client {
                name,
                output,
                cluster_key,
            } => {
                check_name(&name)?;
                let file = cluster_key.map_or_else(default_key_file, Ok)?;
                let key = ClusterKey::load(&file)?;
                let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}.key")));
                if output.exists() {
                    bail!("{}: there is a file already", output.display());
                }
                let client = ClientKey::create(&key, &name)
                    .with_context(|| format!("a key for '{name}'"))?;
                client.save(&output)?;
                println!("{}", output.display());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A client's name is a line of its key file, and makes that file's name.
fn check_name(name: &str) -> Result<(), WrongUse> {
    match name.is_empty() || name.chars().any(|c| c == '/' || c.is_control()) {
        true => Err(WrongUse(format!(
            "{name:?} cannot be a client's name: it has a slash or a control character, or is empty; -o FILE says where the key is written"
        ))),
        false => Ok(()),
    }
}
