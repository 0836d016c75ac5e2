//! How fast the mount's own path is; run by hand: `cargo test --release -p ks-fs --test speed -- --ignored --nocapture`.
//! One process is node and user at once, so the figures are lower bounds. `scripts/bench` measures whole nodes.
#[path = "support/cluster.rs"]
mod cluster;
use cluster::{Cluster, Options, TestNode, away, pattern};
use ks_fs::catalog::Catalog;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Instant,
};

/// Where commands to Redis and this process's processor time are counted.
static COUNTED: OnceLock<Catalog> = OnceLock::new();

fn commands() -> u64 {
    let catalog = COUNTED.get().expect("set first");
    let mut info = redis::cmd("INFO");
    info.arg("stats");
    let runtime = tokio::runtime::Handle::current();
    let text = runtime.block_on(catalog.redis().run(&info)).unwrap();
    let text: String = redis::from_redis_value(text).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("total_commands_processed:"));
    line.unwrap().trim().parse().unwrap()
}

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn rate(what: &str, count: usize, work: impl FnOnce()) {
    let (commands_before, busy) = (commands(), processor_seconds());
    let begun = Instant::now();
    work();
    let seconds = begun.elapsed().as_secs_f64();
    let each = |total: f64| total / count as f64;
    println!(
        "{what:<36} {:>9.0}/s {:>8.1} us, {:>8.1} us of processor, {:.2} commands each",
        count as f64 / seconds,
        each(seconds * 1e6),
        each((processor_seconds() - busy) * 1e6),
        each((commands() - commands_before) as f64),
    );
}

fn list(path: &Path) {
    let listed = Command::new("ls")
        .arg("-l")
        .arg(path)
        .stdout(Stdio::null())
        .status();
    assert!(listed.unwrap().success());
}

fn names(node: &TestNode, other: &TestNode) {
    const COUNT: usize = 10_000;
    fs::create_dir(node.path("many")).unwrap();
    let file = |n: usize| format!("many/file-{n:05}");
    rate("create and close, empty", COUNT, || {
        for n in 0..COUNT {
            File::create(node.path(&file(n))).unwrap();
        }
    });
    rate("stat, other node, cold", COUNT, || {
        for n in 0..COUNT {
            fs::metadata(other.path(&file(n))).unwrap();
        }
    });
    for pass in [
        "ls -l 10,000, first",
        "ls -l 10,000, again",
        "ls -l 10,000, third",
    ] {
        rate(pass, COUNT, || list(&other.path("many")));
    }
    rate("ls -l 10,000, own node", COUNT, || list(&node.path("many")));
    rate("ls -l 10,000, own node, again", COUNT, || {
        list(&node.path("many"))
    });
    rate("ls -l 10,000, the plain directory", COUNT, || {
        list(&node.plain("many"))
    });
    rate("stat, warm", COUNT, || {
        for n in 0..COUNT {
            fs::metadata(other.path(&file(n))).unwrap();
        }
    });
    rate("open and close, local", COUNT, || {
        for n in 0..COUNT {
            File::open(node.path(&file(n))).unwrap();
        }
    });
    rate("unlink", COUNT, || {
        for n in 0..COUNT {
            fs::remove_file(node.path(&file(n))).unwrap();
        }
    });
}

fn opens(node: &TestNode, _: &TestNode) {
    const COUNT: usize = 20_000;
    fs::write(node.path("one"), b"1").unwrap();
    rate("open and close, local", COUNT, || {
        for _ in 0..COUNT {
            File::open(node.path("one")).unwrap();
        }
    });
    let catalog = node.fs.catalog().clone();
    let runtime = tokio::runtime::Handle::current();
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(node.path("one")).unwrap());
    rate("located, without the mount", COUNT, || {
        runtime.block_on(async {
            for _ in 0..COUNT {
                catalog.located(ino).await.unwrap();
            }
        });
    });
    rate("statfs", COUNT, || {
        for _ in 0..COUNT {
            rustix::fs::statvfs(&node.mountpoint).unwrap();
        }
    });
}

fn small_files(node: &TestNode, other: &TestNode) {
    const COUNT: usize = 2000;
    let data = pattern(1, 16 * 1024);
    let file = |n: usize| format!("small-{n:05}");
    rate("create, write 16 KiB, close", COUNT, || {
        for n in 0..COUNT {
            fs::write(node.path(&file(n)), &data).unwrap();
        }
    });
    rate("read 16 KiB, other node, cold", COUNT, || {
        for n in 0..COUNT {
            assert_eq!(fs::read(other.path(&file(n))).unwrap(), data);
        }
    });
    rate("read 16 KiB, own node", COUNT, || {
        for n in 0..COUNT {
            assert_eq!(fs::read(node.path(&file(n))).unwrap(), data);
        }
    });
}

fn large_file(node: &TestNode, other: &TestNode) {
    const SIZE: usize = 256 * 1024 * 1024;
    let data = pattern(1, SIZE);
    let mib = SIZE / 1024 / 1024;
    rate("write, MiB", mib, || {
        fs::write(node.path("large"), &data).unwrap()
    });
    rate("read, own node, MiB", mib, || {
        drop(fs::read(node.path("large")).unwrap())
    });
    rate("read, plain file, MiB", mib, || {
        drop(fs::read(node.plain("large")).unwrap())
    });
    let file = File::open(node.path("large")).unwrap();
    let mut block = [0; 4096];
    rate("pread 4 KiB, own node", 100_000, || {
        for n in 0..100_000u64 {
            file.read_exact_at(&mut block, n * 7919 % 60_000 * 4096)
                .unwrap();
        }
    });
    rate("read, other node, cold, MiB", mib, || {
        assert!(fs::read(other.path("large")).unwrap() == data);
    });
    rate("write 4 KiB, forwarded", 1000, || {
        let file = File::options()
            .write(true)
            .open(other.path("large"))
            .unwrap();
        for n in 0..1000u64 {
            file.write_all_at(&block, n * 8192).unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, run by hand"]
async fn speed() {
    if !Cluster::can_mount() {
        return;
    }
    // Once a process: KS_PASSTHROUGH=no measures the way through the daemon.
    {
        let passthrough = std::env::var("KS_PASSTHROUGH").as_deref() != Ok("no");
        println!("-- passthrough: {passthrough}");
        let options = Options {
            passthrough,
            ..Options::default()
        };
        let mut cluster = Cluster::of(2, options).await;
        let nodes: Vec<_> = cluster.nodes.drain(..).collect();
        let _ = COUNTED.set(nodes[0].fs.catalog().clone());
        away(move || {
            let wanted =
                std::env::var("KS_SPEED").unwrap_or_else(|_| "opens names small large".into());
            let parts: [(&str, fn(&TestNode, &TestNode)); 4] = [
                ("opens", opens),
                ("names", names),
                ("small", small_files),
                ("large", large_file),
            ];
            for (part, measure) in parts {
                if wanted.contains(part) {
                    measure(&nodes[0], &nodes[1]);
                }
            }
            drop(nodes);
        })
        .await;
    }
}
