//! A stand-in for `python -m kitchensink.worker` in tests: speaks the worker's protocol, and does what a call's name says.
//! `echo` returns its arguments, `big N` returns N bytes, `print`, `log`, `raise`, `sleep MS`, `segv`, `exit CODE`, `stubborn` (heeds neither SIGINT nor
//! SIGTERM), `child` (leaves a process that holds its output open), `spray N` (writes N bytes to descriptor 1), `code` (returns how many functions it was sent), `bad` (breaks the protocol).
use ks_executor::frames;
use ks_executor::protocol::{FromWorker, Outcome, Part, Payload, ToWorker};
use ks_transport::segments;
use std::collections::HashSet;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: i32) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

fn option(name: &str) -> i32 {
    let args: Vec<String> = std::env::args().collect();
    let at = args
        .iter()
        .position(|arg| arg == name)
        .expect("the option is given");
    args[at + 1].parse().expect("a descriptor")
}

fn main() {
    if std::env::var_os("FAKE_WORKER_FAILS").is_some() {
        eprintln!("no module named kitchensink");
        std::process::exit(1);
    }
    // SAFETY: the descriptor was passed to this process for this, and nothing else uses it.
    let mut socket = unsafe { UnixStream::from_raw_fd(option("--fd")) };
    // SAFETY: the handler only stores to an atomic.
    unsafe {
        libc::signal(libc::SIGINT, interrupt as *const () as libc::sighandler_t);
    }
    let fault_fd = option("--fault-fd");
    let ready = FromWorker::Ready {
        pid: std::process::id(),
        python: "fake".into(),
        package: env!("CARGO_PKG_VERSION").into(),
    };
    send(&mut socket, &ready, Vec::new());
    let mut functions = HashSet::new();
    while let Ok(Some(frame)) = segments::read(&mut socket) {
        match frames::header(&frame).expect("a message") {
            ToWorker::Exit => return,
            ToWorker::Forget => {}
            ToWorker::Run {
                job,
                name,
                function,
                code,
                args,
                ..
            } => {
                if code.is_some() {
                    functions.insert(format!("{function:?}"));
                }
                let begun = Instant::now();
                let (outcome, segments) =
                    call(&mut socket, &job, &name, args, functions.len(), fault_fd);
                let ended = FromWorker::Ended {
                    job,
                    outcome,
                    run_us: begun.elapsed().as_micros() as u64,
                    cpu_us: 0,
                    unpickling_us: 0,
                    pickling_us: 0,
                    kept: None,
                };
                send(&mut socket, &ended, segments);
            }
        }
    }
}

fn send(socket: &mut UnixStream, message: &FromWorker, segments: Vec<bytes::Bytes>) {
    for chunk in frames::frame(message, segments) {
        if socket.write_all(&chunk).is_err() {
            std::process::exit(0);
        }
    }
}

fn returned(bytes: &[u8]) -> Outcome {
    Outcome::Returned(Payload {
        parts: vec![Part::Inline(bytes.to_vec().into())],
    })
}

fn raised(type_name: &str, message: &str) -> Outcome {
    Outcome::Raised {
        exception: None,
        type_name: type_name.into(),
        message: message.into(),
        traceback: format!("Traceback (most recent call last):\n{type_name}: {message}\n"),
    }
}

fn call(
    socket: &mut UnixStream,
    job: &str,
    name: &str,
    args: Payload,
    functions: usize,
    fault_fd: i32,
) -> (Outcome, Vec<bytes::Bytes>) {
    INTERRUPTED.store(false, Ordering::SeqCst);
    let (verb, number) = name.split_once(' ').unwrap_or((name, "0"));
    let number: u64 = number.parse().expect("a number");
    let outcome = match verb {
        "echo" => Outcome::Returned(args),
        "big" => {
            let data = bytes::Bytes::from(vec![number as u8; number as usize]);
            let payload = Payload {
                parts: vec![Part::Segment(1)],
            };
            return (Outcome::Returned(payload), vec![data]);
        }
        "print" => {
            print!("to stdout of {job}");
            std::io::stdout().flush().expect("stdout is open");
            eprint!("to stderr of {job}");
            returned(b"printed")
        }
        "log" => {
            let record = FromWorker::Log {
                job: job.into(),
                level: 30,
                logger: "fake".into(),
                message: "watch out".into(),
                time: 1.5,
            };
            send(socket, &record, Vec::new());
            returned(b"logged")
        }
        "raise" => raised("ValueError", "no"),
        "sleep" => sleep(Duration::from_millis(number)),
        "stubborn" => {
            // SAFETY: SIG_IGN is a valid disposition.
            unsafe {
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
            }
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "segv" => {
            // SAFETY: the descriptor was passed to this process for this; it is not closed, as the process ends below.
            let mut fault = unsafe { std::fs::File::from_raw_fd(fault_fd) };
            fault
                .write_all(b"Fatal Python error: Segmentation fault\n")
                .expect("the pipe is open");
            // SAFETY: SIG_DFL is a valid disposition (Rust's own handler waits for a second fault).
            unsafe {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            }
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SEGV)
                .expect("it may");
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        "exit" => std::process::exit(number as i32),
        "child" => {
            // Left behind on purpose: the node must end it with its group.
            #[allow(clippy::zombie_processes)]
            let child = std::process::Command::new("sleep")
                .arg("600")
                .spawn()
                .expect("sleep is there");
            returned(child.id().to_string().as_bytes())
        }
        "spray" => {
            let mut left = number as usize;
            let block = [b'x'; 8192];
            let mut out = std::io::stdout();
            while left > 0 {
                let count = left.min(block.len());
                out.write_all(&block[..count]).expect("stdout is open");
                left -= count;
            }
            out.flush().expect("stdout is open");
            returned(b"sprayed")
        }
        "code" => returned(functions.to_string().as_bytes()),
        "bad" => {
            socket.write_all(&[255; 64]).expect("the socket is open");
            returned(b"bad")
        }
        other => raised("NameError", other),
    };
    (outcome, Vec::new())
}

fn sleep(time: Duration) -> Outcome {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if INTERRUPTED.load(Ordering::SeqCst) {
            return raised("KeyboardInterrupt", "");
        }
        std::thread::sleep(
            Duration::from_millis(2).min(until.saturating_duration_since(Instant::now())),
        );
    }
    returned(b"slept")
}
