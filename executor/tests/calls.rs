//! Calls end to end, without a mount: clients, nodes, Redis, QUIC, workers' processes.
mod common;
use bytes::Bytes;
use common::cluster::*;
use ks_executor::protocol::*;
use ks_executor::queue::{Claimant, Queue};
use ks_fs::record::{NodeId, NodeInfo};
use ks_fs::redis_client::Redis;
use ks_fs::testing::TestRedis;
use ks_transport::key::ClusterKey;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Cluster {
    redis: TestRedis,
    nodes: Vec<TestNode>,
}

impl Cluster {
    async fn start(specials: &[Special]) -> Self {
        let redis = TestRedis::start().await;
        let key = ClusterKey::generate();
        let mut nodes = Vec::new();
        for (index, special) in specials.iter().enumerate() {
            let name = format!("node{}", index + 1);
            nodes.push(TestNode::start(&key, redis.target(), &name, special.clone()).await);
        }
        for node in &nodes {
            node.ready().await;
        }
        // What a node knows of the others is one heart-beat old at most.
        if nodes.len() > 1 {
            for node in &nodes {
                knows(node, nodes.len()).await;
            }
        }
        Self { redis, nodes }
    }
    async fn of(count: usize) -> Self {
        Self::start(&vec![Special::default(); count]).await
    }
    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }
}

async fn knows(node: &TestNode, count: usize) {
    let known = async {
        while node
            .catalog
            .nodes()
            .await
            .unwrap()
            .iter()
            .filter(|state| state.alive)
            .count()
            < count
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, known)
        .await
        .expect("the nodes know each other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_on_one_node() {
    let cluster = Cluster::of(1).await;
    let mut client = cluster.nodes[0].client().await;
    let (outcome, report) = client.run(call(1, "echo")).await;
    assert_eq!(text(&outcome), "args 1");
    assert_eq!(
        (report.node.as_str(), report.why.as_str()),
        ("node1", "needs no data")
    );
    assert!(report.pid > 0);

    // Printed output and log records come before the end, in order.
    client.submit(vec![call(2, "print"), call(3, "log")]).await;
    let mut heard: HashMap<String, Vec<String>> = HashMap::new();
    let mut ends = 0;
    while ends < 2 {
        let (job, update, _) = client.update().await;
        heard.entry(job).or_default().push(match update {
            Update::Started { .. } => continue,
            Update::Output { stream, data, node } => {
                format!("{node} {stream} {}", String::from_utf8_lossy(&data))
            }
            Update::Log { message, level, .. } => format!("{level} {message}"),
            Update::Ended { outcome, .. } => {
                ends += 1;
                text(&outcome)
            }
        });
    }
    let printed = [
        format!("node1 1 to stdout of {}", job(2)),
        format!("node1 2 to stderr of {}", job(2)),
        "printed".into(),
    ];
    assert_eq!(heard[&job(2)], printed);
    assert_eq!(heard[&job(3)], ["30 watch out", "logged"]);

    let (outcome, _) = client.run(call(4, "raise")).await;
    assert_eq!(text(&outcome), "raised ValueError");

    // Not wanted: not sent.
    let mut quiet = call(5, "print");
    quiet.intermediate_results = false;
    client.submit(vec![quiet]).await;
    let (before, _, _) = client.follow(&job(5)).await;
    assert!(
        before
            .iter()
            .all(|update| matches!(update, Update::Started { .. })),
        "{before:?}"
    );

    // A long call is said to have started.
    client.submit(vec![call(6, "sleep 100")]).await;
    let (before, _, report) = client.follow(&job(6)).await;
    assert!(matches!(&before[..], [Update::Started { node, .. }] if node == "node1"));
    assert!(report.run_us >= 100_000);
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_in_bulk_end_once_each() {
    let cluster = Cluster::of(2).await;
    let mut client = cluster.nodes[0].client().await;
    let count = 3_000;
    let begun = Instant::now();
    let calls: Vec<_> = (0..count).map(|number| call(number, "echo")).collect();
    client.submit(calls.clone()).await;
    let mut ended = HashSet::new();
    let mut nodes: HashMap<String, usize> = HashMap::new();
    while ended.len() < count {
        let (job, update, _) = client.update().await;
        if let Update::Ended { outcome, report } = update {
            let number = usize::from_str_radix(&job, 16).unwrap();
            assert_eq!(text(&outcome), format!("args {number}"));
            assert!(ended.insert(job), "ended twice");
            *nodes.entry(report.node).or_default() += 1;
        }
    }
    println!("{count} calls in {:?} on {nodes:?}", begun.elapsed());
    // Submitted again: the same jobs, the same ends, nothing runs.
    client.submit(calls[..10].to_vec()).await;
    for _ in 0..10 {
        let (job, update, _) = client.update().await;
        assert!(ended.contains(&job));
        assert!(matches!(update, Update::Ended { .. }));
    }
    for node in &cluster.nodes {
        let status = node.executor.status().await;
        assert_eq!(
            (status["running"].as_u64(), status["claimed"].as_u64()),
            (Some(0), Some(0)),
            "{status}"
        );
        assert_eq!(status["waited_for"], 0);
    }
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_to_the_data() {
    let cluster = Cluster::of(3).await;
    for (index, node) in cluster.nodes.iter().enumerate() {
        node.write_file(&format!("file{index}"), &vec![index as u8; 3_000_000])
            .await;
    }
    let mut client = cluster.nodes[0].client().await;
    let mut calls = Vec::new();
    for number in 0..12 {
        let mut one = call(number, "sleep 20");
        let path = format!("/ks/file{}", number % 3);
        match number < 6 {
            true => one.paths.push(path.into_bytes().into()),
            false => one.locality.push(path.into_bytes().into()),
        }
        calls.push(one);
    }
    client.submit(calls).await;
    for _ in 0..12 {
        let (job, report) = loop {
            let (job, update, _) = client.update().await;
            if let Update::Ended { outcome, report } = update {
                assert_eq!(text(&outcome), "slept");
                break (job, report);
            }
        };
        let number = usize::from_str_radix(&job, 16).unwrap();
        let holder = format!("node{}", number % 3 + 1);
        assert_eq!(report.node, holder, "{}", report.why);
        assert!(
            report
                .why
                .starts_with(&format!("{holder} has all of 1 file")),
            "{}",
            report.why
        );
        for (name, bytes) in &report.costs {
            assert_eq!(*bytes, if *name == holder { 0 } else { 3_000_000 });
        }
        assert_eq!(report.costs.len(), 3);
    }
    // A path outside the tree, and one that is not there, are no data.
    let mut elsewhere = call(20, "echo");
    elsewhere.paths = vec![b"/tmp/x".to_vec().into(), b"/ks/new".to_vec().into()];
    let (outcome, report) = client.run(elsewhere).await;
    assert_eq!(
        (text(&outcome).as_str(), report.why.as_str()),
        ("args 20", "needs no data")
    );
    // Over the threshold nobody else may; the holder does not serve that queue: nobody may, and it is said why.
    let mut too_much = call(21, "echo");
    too_much.paths = vec![b"/ks/file0".to_vec().into()];
    too_much.node = Some("node2".into());
    too_much.data_threshold = Some(1_000_000);
    let (outcome, _) = client.run(too_much).await;
    let said = text(&outcome);
    assert!(
        said.starts_with("NotPlaceable: ") && said.contains("would have to fetch 3.0 MB"),
        "{said}"
    );
    let mut named = call(22, "echo");
    named.node = Some("node3".into());
    let (outcome, report) = client.run(named).await;
    assert_eq!(
        (text(&outcome).as_str(), report.node.as_str()),
        ("args 22", "node3")
    );
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_holder_does_not_hold_a_call_hostage() {
    let cluster = Cluster::start(&[
        Special::default(),
        Special {
            workers: 1,
            ..Special::default()
        },
    ])
    .await;
    cluster.nodes[1].write_file("little", &[7; 100_000]).await;
    let mut client = cluster.nodes[0].client().await;
    let mut long = call(1, "sleep 15000");
    long.node = Some("node2".into());
    client.submit(vec![long]).await;
    let mut wants = call(2, "echo");
    wants.paths = vec![b"/ks/little".to_vec().into()];
    let begun = Instant::now();
    client.submit(vec![wants]).await;
    let (_, outcome, report) = client.follow(&job(2)).await;
    assert_eq!(
        (text(&outcome).as_str(), report.node.as_str()),
        ("args 2", "node1")
    );
    let expected = Duration::from_millis(ks_executor::placement::delay_ms(100_000));
    assert!(
        begun.elapsed() >= expected && begun.elapsed() < expected + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        report
            .why
            .ends_with("node1 was free first and fetches 100.0 kB"),
        "{}",
        report.why
    );
    let Answer::Cancelled { jobs } = client
        .ask(Ask::Cancel {
            jobs: vec![job(1)],
            all: false,
        })
        .await
    else {
        panic!("it is answered")
    };
    assert_eq!(jobs, [job(1)]);
    let (_, outcome, _) = client.follow(&job(1)).await;
    assert!(text(&outcome).starts_with("JobCancelled"), "{outcome:?}");
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_timeouts_and_retries() {
    let cluster = Cluster::of(1).await;
    let mut client = cluster.nodes[0].client().await;
    let begun = Instant::now();
    let (outcome, report) = client.run(call(1, "segv")).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let Outcome::Failed {
        kind,
        message,
        signal,
        stack,
        ..
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!((kind.as_str(), signal), ("WorkerCrashed", Some(11)));
    assert!(
        message.contains("SIGSEGV") && message.contains("node1"),
        "{message}"
    );
    assert_eq!(
        stack.as_deref(),
        Some("Fatal Python error: Segmentation fault")
    );
    assert_eq!(report.node, "node1");
    let (outcome, _) = client.run(call(2, "exit 3")).await;
    assert!(
        text(&outcome).contains("exited with status 3"),
        "{outcome:?}"
    );
    // Both workers are replaced.
    let (outcome, _) = client.run(call(3, "echo")).await;
    assert_eq!(text(&outcome), "args 3");
    cluster.nodes[0].ready().await;

    let mut again = call(4, "segv");
    again.retries = 2;
    let (outcome, _) = client.run(again).await;
    assert!(text(&outcome).starts_with("WorkerCrashed"));

    let mut late = call(5, "sleep 60000");
    late.timeout_ms = Some(200);
    let begun = Instant::now();
    let (outcome, _) = client.run(late).await;
    assert!(text(&outcome).starts_with("JobTimeout"), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));

    // Heeds no signal but the last, and its interpreter does not hear of the first.
    client.submit(vec![call(6, "stubborn")]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    client
        .ask(Ask::Cancel {
            jobs: vec![job(6)],
            all: false,
        })
        .await;
    let (_, outcome, _) = client.follow(&job(6)).await;
    assert!(text(&outcome).starts_with("JobCancelled"), "{outcome:?}");
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(5),
        "{took:?}"
    );
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_what_waits_and_all() {
    let cluster = Cluster::start(&[Special {
        workers: 1,
        ..Special::default()
    }])
    .await;
    let mut client = cluster.nodes[0].client().await;
    client
        .submit((0..5).map(|number| call(number, "sleep 60000")).collect())
        .await;
    let Answer::Cancelled { jobs } = client
        .ask(Ask::Cancel {
            jobs: vec![job(3), job(77)],
            all: false,
        })
        .await
    else {
        panic!("it is answered")
    };
    assert_eq!(jobs, [job(3)]);
    let (_, outcome, _) = client.follow(&job(3)).await;
    assert!(text(&outcome).starts_with("JobCancelled"));
    let Answer::Cancelled { jobs } = client
        .ask(Ask::Cancel {
            jobs: vec![],
            all: true,
        })
        .await
    else {
        panic!("it is answered")
    };
    assert_eq!(jobs.len(), 4);
    let mut ended = HashSet::new();
    while ended.len() < 4 {
        if let (job, Update::Ended { outcome, .. }, _) = client.update().await {
            assert!(text(&outcome).starts_with("JobCancelled"));
            ended.insert(job);
        }
    }
    let (outcome, _) = client.run(call(10, "echo")).await;
    assert_eq!(text(&outcome), "args 10");
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_arguments_and_results_are_files_and_arrive() {
    let cluster = Cluster::of(2).await;
    let mut client = cluster.nodes[0].client().await;
    for (number, node) in ["node1", "node2"].into_iter().enumerate() {
        let mut large = call(number, "echo");
        large.node = Some(node.into());
        large.args = Payload {
            parts: vec![Part::Inline(b"small".to_vec().into()), Part::Segment(1)],
        };
        let data = Bytes::from(
            (0..3_000_000u32)
                .map(|byte| (byte % 251) as u8)
                .collect::<Vec<_>>(),
        );
        let submit = Ask::Submit {
            functions: Vec::new(),
            calls: vec![large],
        };
        let answer = client.ask_with(submit, vec![data.clone()]).await;
        assert!(matches!(answer, Answer::Accepted), "{answer:?}");
        let (_, outcome, report) = client.follow(&job(number)).await;
        assert_eq!(report.node, node);
        let Outcome::Returned(payload) = outcome else {
            panic!("{outcome:?}")
        };
        // The fake worker gives back what it was given: a file that it could open.
        let Part::Blob {
            size,
            path: Some(path),
            ..
        } = &payload.parts[1]
        else {
            panic!("{payload:?}")
        };
        assert_eq!(*size, 3_000_000);
        let path = std::path::Path::new(std::str::from_utf8(path).unwrap());
        assert_eq!(std::fs::read(path).unwrap(), data);

        let mut big = call(10 + number, "big 1000000");
        big.node = Some(node.into());
        let (outcome, _) = client.run(big).await;
        let Outcome::Returned(payload) = outcome else {
            panic!("{outcome:?}")
        };
        let Part::Blob {
            size: 1_000_000,
            path: Some(path),
            ..
        } = &payload.parts[0]
        else {
            panic!("{payload:?}")
        };
        let path = std::path::Path::new(std::str::from_utf8(path).unwrap());
        assert!(
            path.starts_with(cluster.nodes[0].executor_datadir()),
            "at the caller's node: {}",
            path.display()
        );
        assert_eq!(std::fs::read(path).unwrap().len(), 1_000_000);
    }
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_travel_once_by_hash() {
    let cluster = Cluster::of(2).await;
    let mut client = cluster.nodes[0].client().await;
    for (number, size) in [100, 300_000].into_iter().enumerate() {
        let code = vec![number as u8; size];
        let hash = blake3::hash(&code).as_bytes().to_vec();
        let function = FunctionCode {
            hash: hash.clone().into(),
            name: "f".into(),
            code: Part::Segment(1),
        };
        let mut calls = Vec::new();
        for (index, node) in ["node1", "node2", "node2"].into_iter().enumerate() {
            let mut one = call(10 * number + index, "code");
            one.function = FunctionRef::Hash(hash.clone().into());
            one.node = Some(node.into());
            calls.push(one);
        }
        let submit = Ask::Submit {
            functions: vec![function.clone()],
            calls,
        };
        let answer = client.ask_with(submit, vec![Bytes::from(code)]).await;
        assert!(matches!(answer, Answer::Accepted), "{answer:?}");
        let mut ended = 0;
        while ended < 3 {
            if let (_, Update::Ended { outcome, .. }, _) = client.update().await {
                assert!(["1", "2"].contains(&text(&outcome).as_str()), "{outcome:?}");
                ended += 1;
            }
        }
        let wrong = FunctionCode {
            code: Part::Inline(b"something else".to_vec().into()),
            ..function
        };
        let answer = client
            .ask(Ask::Submit {
                functions: vec![wrong],
                calls: Vec::new(),
            })
            .await;
        assert!(matches!(answer, Answer::Failed { .. }), "{answer:?}");
    }
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_registered_functions_where_it_is_said_so() {
    let special = Special {
        registered_only: true,
        ..Special::default()
    };
    let cluster = Cluster::start(&[special]).await;
    let mut client = cluster.nodes[0].client().await;
    for (number, name, allowed) in [
        (1, "served:f", true),
        (2, "kitchensink.builtins:ping", true),
        // Whether any other name is registered its workers know.
        (3, "kitchensink.builtins:run_command", false),
    ] {
        let mut one = call(number, "echo");
        one.function = FunctionRef::Name(name.into());
        let (outcome, _) = client.run(one).await;
        assert_eq!(
            !text(&outcome).starts_with("NotRegistered"),
            allowed,
            "{outcome:?}"
        );
    }
    let mut by_value = call(4, "echo");
    by_value.function = FunctionRef::Hash(vec![1; 32].into());
    let (outcome, _) = client.run(by_value).await;
    assert!(text(&outcome).starts_with("NotRegistered"), "{outcome:?}");
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_gets_the_end() {
    let cluster = Cluster::of(2).await;
    let mut client = cluster.nodes[0].client().await;
    let mut remote = call(2, "sleep 700");
    remote.node = Some("node2".into());
    client
        .submit(vec![call(1, "sleep 300"), remote, call(3, "echo")])
        .await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(400)).await;
    // At another node than before.
    let mut client = cluster.nodes[1].client().await;
    let answer = client
        .ask(Ask::Attach {
            jobs: vec![job(1), job(2), job(3), job(9)],
        })
        .await;
    assert!(matches!(answer, Answer::Accepted), "{answer:?}");
    let mut ends = HashMap::new();
    while ends.len() < 4 {
        if let (job, Update::Ended { outcome, .. }, _) = client.update().await {
            assert!(ends.insert(job, text(&outcome)).is_none());
        }
    }
    assert_eq!(
        (
            ends[&job(1)].as_str(),
            ends[&job(2)].as_str(),
            ends[&job(3)].as_str()
        ),
        ("slept", "slept", "args 3")
    );
    assert!(ends[&job(9)].starts_with("JobUnknown"), "{}", ends[&job(9)]);
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_of_a_node_that_dies_hear_of_it() {
    let cluster = Cluster::of(1).await;
    // A node that claims a call and is never heard of again.
    let ghost = Claimant {
        node: NodeId(0xdead),
        incarnation: 1,
    };
    let redis = Redis::connect(cluster.redis.target(), false, Arc::new(|_| {}))
        .await
        .unwrap();
    let queue = Queue::new(redis, ghost);
    let catalog =
        ks_fs::catalog::Catalog::open(cluster.redis.target(), ghost.node, Arc::new(|_| {}))
            .await
            .unwrap();
    let info = NodeInfo {
        name: "ghost".into(),
        address: "127.0.0.1:1".into(),
        mountpoint: "/ks".into(),
        datadir: "/".into(),
        incarnation: 1,
        version: "test".into(),
        workers: 1,
        queues: vec!["default".into()],
        read_only: false,
        carries_redis: false,
        started: 0,
        free_bytes: 0,
        total_bytes: 0,
    };
    catalog.register(info).await.unwrap();
    queue.renew().await.unwrap();
    knows(&cluster.nodes[0], 2).await;
    let mut client = cluster.nodes[0].client().await;
    let mut calls: Vec<_> = (1..=3).map(|number| call(number, "echo")).collect();
    calls
        .iter_mut()
        .for_each(|call| call.node = Some("ghost".into()));
    client.submit(calls).await;
    let claims = queue.claim(&["default".into()], 2, &[]).await.unwrap();
    assert_eq!(claims.jobs.len(), 2);
    let begun = Instant::now();
    let mut ends = HashMap::new();
    while ends.len() < 3 {
        if let (job, Update::Ended { outcome, .. }, _) = client.update().await {
            assert!(ends.insert(job, text(&outcome)).is_none());
        }
    }
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    for number in [1, 2] {
        assert!(
            ends[&job(number)].contains("NodeLost: node ghost was not heard of"),
            "{ends:?}"
        );
    }
    assert!(
        ends[&job(3)].contains("NotPlaceable"),
        "it waited for the ghost only: {ends:?}"
    );
    drop(client);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_keep_to_the_protocol_harm_nobody() {
    let cluster = Cluster::of(1).await;
    let node = &cluster.nodes[0];
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&node.socket).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let mut good = node.client().await;
    for nonsense in [
        &[255u8; 64][..],
        b"\x01\0\0\0\xff\xff\xff\xff\xff\0\0\0",
        b"\x01\0\0\0\x03\0\0\0\0\0\0\0abc",
    ] {
        let mut bad = node.client().await;
        bad.send_raw(nonsense).await;
        while let Some((tell, _)) = bad.next().await {
            assert!(matches!(
                tell,
                Tell::Reply {
                    answer: Answer::Failed { .. },
                    ..
                }
            ));
        }
    }
    // One that never reads: its output is dropped, its end is not, others go on.
    let mut deaf = node.client().await;
    let calls: Vec<_> = (100..140)
        .map(|number| call(number, "spray 2000000"))
        .collect();
    deaf.send(
        Ask::Submit {
            functions: Vec::new(),
            calls,
        },
        Vec::new(),
    )
    .await;
    let begun = Instant::now();
    loop {
        let (outcome, _) = good
            // Not the number of one of the others, however soon this is.
            .run(call(1_000 + begun.elapsed().as_nanos() as usize, "echo"))
            .await;
        let said = text(&outcome);
        assert!(said.starts_with("args"), "{said}");
        let status = node.executor.status().await;
        if status["waited_for"] == 0 {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut ends, mut bytes, mut dropped) = (0, 0, 0u64);
    while ends < 40 {
        match deaf.update().await.1 {
            Update::Ended { .. } => ends += 1,
            Update::Output {
                stream: NOTE_STREAM,
                data,
                ..
            } => {
                let note = String::from_utf8(data.into_vec()).unwrap();
                dropped += note.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
            }
            Update::Output { data, .. } => bytes += data.len() as u64,
            _ => {}
        }
    }
    assert!(dropped > 0);
    assert_eq!(bytes + dropped, 40 * 2_000_000);
    drop((good, deaf));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_cannot_start_are_a_clear_error() {
    let special = Special {
        python: "/bin/false".into(),
        workers: 1,
        ..Special::default()
    };
    let redis = TestRedis::start().await;
    let key = ClusterKey::generate();
    let node = TestNode::start(&key, redis.target(), "node1", special).await;
    let mut client = node.client().await;
    let (outcome, _) = client.run(call(1, "echo")).await;
    let said = text(&outcome);
    assert!(
        said.starts_with("WorkerCrashed") && said.contains("exited with status 1 as it started"),
        "{said}"
    );
    drop(client);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_is_gone_for_a_while_loses_nothing() {
    let cluster = Cluster::of(1).await;
    let mut client = cluster.nodes[0].client().await;
    client
        .submit((0..4).map(|number| call(number, "sleep 300")).collect())
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.redis.kill();
    let mut ended = HashSet::new();
    while ended.len() < 4 {
        if let (job, Update::Ended { outcome, .. }, _) = client.update().await {
            assert_eq!(text(&outcome), "slept");
            assert!(ended.insert(job));
        }
    }
    let (outcome, _) = client.run(call(10, "echo")).await;
    assert_eq!(text(&outcome), "args 10");
    drop(client);
    cluster.stop().await;
}
