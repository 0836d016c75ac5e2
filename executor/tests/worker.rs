//! Worker processes: what they write is told in order, their deaths are told at once and in full.
mod common;
use ks_executor::job::StopSignal;
use ks_executor::protocol::{FromWorker, FunctionRef, Outcome, Part, Payload, ToWorker};
use ks_executor::worker::process::Launch;
use ks_executor::worker::{Answered, Exit, Supervisor, Worker, state::State};
use rustix::process::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Told {
    Ready,
    Wrote(Option<String>, u8, Vec<u8>),
    Logged(String),
    Answered(Answered),
    Exited(Exit),
}

struct Listener(mpsc::UnboundedSender<Told>);

impl Supervisor for Listener {
    fn ready(&self, _: &Arc<Worker>) {
        let _ = self.0.send(Told::Ready);
    }
    fn wrote(&self, _: &Arc<Worker>, job: Option<&str>, stream: u8, data: Vec<u8>) {
        let _ = self
            .0
            .send(Told::Wrote(job.map(str::to_owned), stream, data));
    }
    fn logged(&self, _: &Arc<Worker>, record: FromWorker) {
        if let FromWorker::Log { message, .. } = record {
            let _ = self.0.send(Told::Logged(message));
        }
    }
    fn answered(&self, _: &Arc<Worker>, answer: Answered) {
        let _ = self.0.send(Told::Answered(answer));
    }
    fn exited(&self, _: &Arc<Worker>, exit: Exit) {
        let _ = self.0.send(Told::Exited(exit));
    }
}

struct Bench {
    worker: Arc<Worker>,
    told: mpsc::UnboundedReceiver<Told>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.worker.kill();
    }
}

impl Bench {
    async fn start(environment: &[(&str, &str)]) -> Self {
        let (send, told) = mpsc::unbounded_channel();
        let launch = Launch {
            python: common::fake_worker(),
            environment: environment
                .iter()
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .collect(),
        };
        let worker = Worker::start("default".into(), launch, Arc::new(Listener(send)))
            .await
            .unwrap();
        Self { worker, told }
    }
    async fn ready() -> Self {
        let mut bench = Self::start(&[]).await;
        assert!(matches!(bench.next().await, Told::Ready));
        bench
    }
    async fn next(&mut self) -> Told {
        let told = tokio::time::timeout(DEADLINE, self.told.recv()).await;
        told.expect("something is told in time")
            .expect("the task lives")
    }
    fn run(&self, job: &str, name: &str) {
        assert!(self.worker.assign(job), "{:?}", self.worker.state());
        let message = ToWorker::Run {
            job: job.into(),
            name: name.into(),
            function: FunctionRef::Hash(vec![1; 32].into()),
            code: None,
            format: "raw".into(),
            args: Payload {
                parts: vec![Part::Inline(b"args".to_vec().into())],
            },
            mountpoint_from: None,
            mountpoint_to: b"/ks".to_vec().into(),
            intermediate_results: true,
            kept: Vec::new(),
            keep: None,
            priority: 0,
        };
        self.worker
            .send(ks_executor::frames::frame(&message, Vec::new()));
    }
    async fn exit(&mut self) -> Exit {
        loop {
            if let Told::Exited(exit) = self.next().await {
                return exit;
            }
        }
    }
    async fn answer(&mut self) -> Answered {
        loop {
            match self.next().await {
                Told::Answered(answer) => return answer,
                Told::Exited(exit) => panic!("{exit:?}"),
                _ => {}
            }
        }
    }
}

fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Returned(Payload { parts }) => match &parts[0] {
            Part::Inline(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => format!("{other:?}"),
        },
        Outcome::Raised { type_name, .. } => type_name.clone(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_one_after_the_other() {
    let mut bench = Bench::ready().await;
    for number in 0..50 {
        bench.run(&format!("job{number}"), "echo");
        let answer = bench.answer().await;
        assert_eq!(
            (answer.job, text(&answer.outcome)),
            (format!("job{number}"), "args".into())
        );
    }
    bench.worker.retire();
    let exit = bench.exit().await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.job),
        (Some(0), None, None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_writes_is_told_before_its_end() {
    let mut bench = Bench::ready().await;
    for number in 0..30 {
        let job = format!("job{number}");
        bench.run(&job, "print");
        let mut wrote = [String::new(), String::new()];
        loop {
            match bench.next().await {
                Told::Wrote(of, stream, data) => {
                    assert_eq!(of.as_deref(), Some(&*job));
                    wrote[stream as usize - 1].push_str(&String::from_utf8(data).unwrap());
                }
                Told::Answered(answer) => break assert_eq!(text(&answer.outcome), "printed"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            wrote,
            [format!("to stdout of {job}"), format!("to stderr of {job}")]
        );
    }
    bench.run("much", "spray 3000000");
    let mut count = 0;
    loop {
        match bench.next().await {
            Told::Wrote(_, 1, data) => count += data.len(),
            Told::Answered(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count, 3_000_000);
    bench.run("logs", "log");
    assert!(matches!(bench.next().await, Told::Logged(message) if message == "watch out"));
    bench.answer().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_told_at_once_with_its_signal_and_stack() {
    let mut bench = Bench::ready().await;
    let begun = Instant::now();
    bench.run("job", "segv");
    let exit = bench.exit().await;
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        (exit.signal, exit.exit_code, exit.job.as_deref()),
        (Some(11), None, Some("job"))
    );
    assert_eq!(
        exit.stack.as_deref(),
        Some("Fatal Python error: Segmentation fault")
    );
    assert!(!exit.failed_to_start);

    let mut bench = Bench::ready().await;
    bench.run("job", "exit 7");
    let exit = bench.exit().await;
    assert_eq!(
        (exit.signal, exit.exit_code, exit.job.as_deref()),
        (None, Some(7), Some("job"))
    );

    let mut bench = Bench::ready().await;
    bench.run("job", "bad");
    let exit = bench.exit().await;
    assert_eq!((exit.signal, exit.job.as_deref()), (Some(9), Some("job")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_holds_the_output_open_goes_with_its_worker() {
    let mut bench = Bench::ready().await;
    bench.run("job", "child");
    let child: i32 = text(&bench.answer().await.outcome).parse().unwrap();
    let path = format!("/proc/{child}/cmdline");
    // While it becomes another program, it has no command line for a moment.
    let begun = Instant::now();
    while !std::fs::read(&path).is_ok_and(|cmdline| !cmdline.is_empty()) {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.worker.retire();
    bench.exit().await;
    let begun = Instant::now();
    while std::fs::read(&path).is_ok_and(|cmdline| !cmdline.is_empty()) {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_call_they_are_meant_for() {
    let mut bench = Bench::ready().await;
    bench.run("job", "sleep 60000");
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.worker.signal("another", Signal::KILL);
    bench.worker.signal("job", Signal::INT);
    assert_eq!(text(&bench.answer().await.outcome), "KeyboardInterrupt");
    bench.worker.signal("job", Signal::KILL);
    bench.run("next", "echo");
    assert_eq!(text(&bench.answer().await.outcome), "args");

    bench.run("stubborn", "stubborn");
    tokio::time::sleep(Duration::from_millis(50)).await;
    for signal in [StopSignal::Interrupt, StopSignal::Terminate] {
        bench.worker.signal("stubborn", signal.into());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.worker.state(), State::Busy);
    assert!(!bench.worker.assign("another"));
    bench.worker.signal("stubborn", StopSignal::Kill.into());
    let exit = bench.exit().await;
    assert_eq!(
        (exit.signal, exit.job.as_deref()),
        (Some(9), Some("stubborn"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_start_says_why() {
    let mut bench = Bench::start(&[("FAKE_WORKER_FAILS", "1")]).await;
    let exit = bench.exit().await;
    assert!(exit.failed_to_start);
    assert_eq!(exit.exit_code, Some(1));
    assert_eq!(exit.stack.as_deref(), Some("no module named kitchensink"));

    let (send, _told) = mpsc::unbounded_channel();
    let launch = Launch {
        python: "/nowhere/python".into(),
        environment: Vec::new(),
    };
    let error = Worker::start("default".into(), launch, Arc::new(Listener(send)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_come_as_segments() {
    let mut bench = Bench::ready().await;
    bench.run("job", "big 5000000");
    let answer = bench.answer().await;
    assert_eq!(answer.segments[1].len(), 5_000_000);
    assert!(
        answer.segments[1]
            .iter()
            .all(|&byte| byte == 5_000_000u64 as u8)
    );
}
