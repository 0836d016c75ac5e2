//! The job scripts against a real Redis: claims are atomic, a job ends once, dead nodes' jobs come back, order is kept.
use ks_executor::placement::{Place, Placement};
use ks_executor::queue::kept::NewKept;
use ks_executor::queue::model::Model;
use ks_executor::queue::{
    CancelAnswer, Claimant, Finish, Finished, Full, LEASE, Limits, Next, Queue, Standing,
    Submission, Took, Want, places_text,
};
use ks_fs::record::NodeId;
use ks_fs::redis_client::{Push, Redis};
use ks_fs::testing::TestRedis;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

struct Member {
    queue: Queue,
    heard: Arc<Mutex<Vec<(String, String)>>>,
}

impl Member {
    async fn join(server: &TestRedis, node: u64) -> Self {
        Self::again(server, node, 1).await
    }
    async fn again(server: &TestRedis, node: u64, incarnation: u64) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        let on_push = Arc::new(move |push| {
            if let Push::Message { channel, payload } = push {
                let text = |raw| String::from_utf8(raw).unwrap();
                ears.lock().unwrap().push((text(channel), text(payload)));
            }
        });
        let redis = Redis::connect(server.target(), false, on_push)
            .await
            .unwrap();
        let me = Claimant {
            node: NodeId(node),
            incarnation,
        };
        let queue = Queue::new(redis, me);
        queue.subscribe().await.unwrap();
        queue.renew().await.unwrap();
        Self { queue, heard }
    }
    async fn hears(&self, payload: &str) {
        let heard = async {
            loop {
                if self
                    .heard
                    .lock()
                    .unwrap()
                    .iter()
                    .any(|(_, text)| text == payload)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, heard).await;
        waited.unwrap_or_else(|_| panic!("{payload} was not heard"));
    }
    async fn submit(&self, jobs: &[Submission], want: usize) -> Vec<String> {
        self.queue.submit(&[], jobs, want).await.unwrap().claimed
    }
    async fn claim(&self, want: usize) -> Vec<String> {
        let claims = self
            .queue
            .claim(&["default".into()], want, &[])
            .await
            .unwrap();
        claims.jobs.into_iter().map(|claimed| claimed.job).collect()
    }
    async fn finish(&self, job: &str, retry: bool) -> Finished {
        self.queue.finish(&[end(job, retry)]).await.unwrap()[0]
    }
    async fn standing(&self, job: &str) -> Standing {
        self.queue
            .standing(&[job.to_owned()])
            .await
            .unwrap()
            .remove(0)
    }
}

fn end(job: &str, retry: bool) -> Finish {
    Finish {
        job: job.to_owned(),
        kind: "done",
        ended: b"the end".to_vec(),
        retry,
        notify: true,
    }
}

fn id(number: usize) -> String {
    format!("{number:032x}")
}

fn job(number: usize, places: &[(u64, u64)]) -> Submission {
    let places: Vec<_> = places
        .iter()
        .map(|(node, delay)| format!("{}={delay}", NodeId(*node)))
        .collect();
    Submission {
        job: id(number),
        body: format!("body {number}").into_bytes(),
        queue: "default".into(),
        priority: 0,
        retries: 0,
        places: places.join(","),
        here: false,
        outer: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claimers_at_once_never_share_a_job() {
    let server = TestRedis::start().await;
    let accepting = Member::join(&server, 9).await;
    let jobs: Vec<_> = (0..600).map(|number| job(number, &[])).collect();
    for batch in jobs.chunks(200) {
        accepting.submit(batch, 0).await;
    }
    let mut claimers = tokio::task::JoinSet::new();
    for node in 1..=4 {
        let member = Member::join(&server, node).await;
        claimers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let some = member.claim(7).await;
                if some.is_empty() {
                    return mine;
                }
                mine.extend(some);
            }
        });
    }
    let all: Vec<String> = claimers.join_all().await.into_iter().flatten().collect();
    assert_eq!(all.len(), 600);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 600);
}

#[tokio::test]
async fn a_quick_job_is_claimed_as_it_is_accepted() {
    let server = TestRedis::start().await;
    let node = Member::join(&server, 1).await;
    let mut batch: Vec<_> = (0..3).map(|number| job(number, &[])).collect();
    batch.iter_mut().for_each(|job| job.here = true);
    assert_eq!(node.submit(&batch, 2).await, [id(0), id(1)]);
    // Sent twice is one job.
    let again = node.queue.submit(&[], &batch, 2).await.unwrap();
    assert!(again.claimed.is_empty());
    assert_eq!(again.known.len(), 3);
    let claims = node.queue.claim(&["default".into()], 5, &[]).await.unwrap();
    assert_eq!(claims.next, Next::Nothing);
    assert_eq!(claims.jobs.len(), 1);
    let claimed = &claims.jobs[0];
    assert_eq!(
        (claimed.job.as_str(), claimed.body.as_slice()),
        (id(2).as_str(), &b"body 2"[..])
    );
    assert_eq!(claimed.origin, NodeId(1));
    assert!(claims.now_ms - claimed.accepted_ms < 10_000);
}

#[tokio::test]
async fn a_job_ends_once_and_only_for_its_claimant() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    one.submit(&[job(1, &[])], 0).await;
    assert_eq!(
        one.finish(&id(1), false).await,
        Finished::Refused,
        "not claimed yet"
    );
    two.hears("q").await;
    assert_eq!(two.claim(1).await, [id(1)]);
    assert_eq!(
        one.finish(&id(1), false).await,
        Finished::Refused,
        "claimed by another"
    );
    let other_start = Member::again(&server, 2, 2).await;
    assert_eq!(
        other_start.finish(&id(1), false).await,
        Finished::Refused,
        "another incarnation"
    );
    assert_eq!(one.standing(&id(1)).await, Standing::Going);
    assert_eq!(two.finish(&id(1), false).await, Finished::Ended);
    assert_eq!(
        two.finish(&id(1), false).await,
        Finished::Refused,
        "it has ended"
    );
    one.hears(&format!("e{}", id(1))).await;
    assert_eq!(
        one.standing(&id(1)).await,
        Standing::Ended(b"the end".to_vec())
    );
    assert!(one.queue.going(10).await.unwrap().is_empty());
    assert!(two.queue.claimed().await.unwrap().is_empty());
    let mut ttl = redis::cmd("TTL");
    ttl.arg(format!("ks:j:{}", id(1)));
    let redis::Value::Int(seconds) = one.queue.redis().run(&ttl).await.unwrap() else {
        panic!("a number")
    };
    assert!((86_000..=86_400).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn higher_priorities_come_first_then_the_order_of_submission() {
    let server = TestRedis::start().await;
    let node = Member::join(&server, 1).await;
    let mut batch: Vec<_> = (0..40).rev().map(|number| job(number, &[])).collect();
    batch[7].priority = 5;
    batch[3].priority = 9_999;
    batch[0].priority = -1;
    let mut expected: Vec<_> = batch.iter().map(|job| job.job.clone()).collect();
    node.submit(&batch, 0).await;
    let lowest = expected.remove(0);
    let middle = expected.remove(6);
    let highest = expected.remove(2);
    expected.splice(0..0, [highest, middle]);
    expected.push(lowest);
    let mut got = node.claim(11).await;
    got.extend(node.claim(100).await);
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_node_waits_until_it_is_eligible_and_first_choices_come_first() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    let batch: Vec<_> = (0..8)
        .map(|number| {
            if number % 2 == 0 {
                job(number, &[(1, 0), (2, 300)])
            } else {
                job(number, &[(1, 300), (2, 0)])
            }
        })
        .collect();
    one.submit(&batch, 0).await;
    let claims = two.queue.claim(&["default".into()], 3, &[]).await.unwrap();
    assert_eq!(claims.next, Next::Now, "one more is its own");
    let got: Vec<_> = claims
        .jobs
        .iter()
        .map(|claimed| claimed.job.clone())
        .collect();
    assert_eq!(got, [id(1), id(3), id(5)]);
    assert_eq!(one.claim(1).await, [id(0)]);
    tokio::time::sleep(Duration::from_millis(1_450)).await;
    // Its own first, then the others' in order, as they have waited for longer than it would fetch; what was claimed is not offered again.
    assert_eq!(two.claim(100).await, [id(7), id(2), id(4), id(6)]);
    assert!(one.claim(100).await.is_empty());
}

#[tokio::test]
async fn the_next_time_is_told() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    one.submit(&[job(1, &[(1, 0), (2, 5_000)])], 0).await;
    two.hears("q").await;
    let claims = two.queue.claim(&["default".into()], 1, &[]).await.unwrap();
    assert!(claims.jobs.is_empty());
    let Next::In(wait_ms) = claims.next else {
        panic!("{:?}", claims.next)
    };
    assert!((5_000..=6_100).contains(&wait_ms), "{wait_ms}");
    let other = two.queue.claim(&["gpu".into()], 1, &[]).await.unwrap();
    assert_eq!(other.next, Next::Nothing, "another queue");
}

#[tokio::test]
async fn a_dead_nodes_jobs_are_lost_or_run_again() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    let mut batch = [
        job(1, &[]),
        job(2, &[]),
        job(3, &[(2, 0)]),
        job(4, &[(2, 0), (1, 0)]),
    ];
    batch[1].retries = 1;
    one.submit(&batch, 0).await;
    assert_eq!(two.claim(2).await, [id(1), id(2)]);
    assert!(one.queue.reap(false).await.unwrap().is_empty(), "it lives");
    two.queue.resign().await.unwrap();
    let mut reaped: HashMap<_, _> = HashMap::new();
    for job in one.queue.reap(false).await.unwrap() {
        reaped.insert(job.job, job.lost_by);
    }
    let expected = [
        (id(1), Some(NodeId(2))),
        (id(2), Some(NodeId(2))),
        (id(3), None),
    ];
    assert_eq!(reaped, expected.into_iter().collect());
    assert_eq!(
        two.finish(&id(1), false).await,
        Finished::Refused,
        "it was thought dead"
    );
    assert_eq!(
        one.finish(&id(1), true).await,
        Finished::Ended,
        "no retries left"
    );
    assert_eq!(one.finish(&id(2), true).await, Finished::Again);
    let placed = [(id(3), Some(format!("{}=0", NodeId(1))))];
    assert_eq!(one.queue.release(&placed).await.unwrap(), 1);
    let again: HashSet<_> = one.claim(10).await.into_iter().collect();
    assert_eq!(again, [id(2), id(3), id(4)].into_iter().collect());
    assert_eq!(
        one.finish(&id(2), true).await,
        Finished::Ended,
        "its one retry is spent"
    );
    one.queue
        .release(&[(id(3), None), (id(4), None)])
        .await
        .unwrap();
    assert_eq!(one.claim(10).await.len(), 2, "given back as they were");
    assert!(one.queue.reap(false).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reaper_that_dies_is_reaped() {
    let server = TestRedis::start().await;
    let (one, two, three) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
        Member::join(&server, 3).await,
    );
    one.submit(&[job(1, &[])], 0).await;
    assert_eq!(one.claim(1).await, [id(1)]);
    one.queue.resign().await.unwrap();
    assert_eq!(two.queue.reap(false).await.unwrap().len(), 1);
    two.queue.resign().await.unwrap();
    let reaped = three.queue.reap(false).await.unwrap();
    assert_eq!((reaped.len(), reaped[0].lost_by), (1, Some(NodeId(2))));
    assert_eq!(three.finish(&id(1), false).await, Finished::Ended);
}

#[tokio::test]
async fn a_lease_runs_out_by_itself_and_its_holder_learns_of_it() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    one.submit(&[job(1, &[])], 0).await;
    assert_eq!(two.claim(1).await, [id(1)]);
    assert!(two.queue.renew().await.unwrap());
    tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
    assert_eq!(one.queue.reap(false).await.unwrap().len(), 1);
    assert!(!two.queue.renew().await.unwrap());
    assert!(two.queue.claimed().await.unwrap().is_empty());
}

#[tokio::test]
async fn cancelling_and_attaching() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    one.submit(&[job(1, &[]), job(2, &[(1, 0), (2, 10_000)])], 0)
        .await;
    assert_eq!(two.claim(1).await, [id(1)]);
    let all = [id(1), id(2), id(3)];
    let answers = one.queue.cancel(&all).await.unwrap();
    assert_eq!(
        answers,
        [
            CancelAnswer::Told,
            CancelAnswer::Taken,
            CancelAnswer::Unknown
        ]
    );
    two.hears(&format!("c{}", id(1))).await;
    assert_eq!(one.finish(&id(2), false).await, Finished::Ended);
    assert!(
        one.claim(10).await.is_empty(),
        "a cancelled job is in no queue"
    );
    let three = Member::join(&server, 3).await;
    let standings = three.queue.attach(&all).await.unwrap();
    assert_eq!(
        standings,
        [
            Standing::Going,
            Standing::Ended(b"the end".to_vec()),
            Standing::Unknown
        ]
    );
    two.hears(&format!("o{}{}", NodeId(3), id(1))).await;
    assert_eq!(two.finish(&id(1), false).await, Finished::Ended);
    three.hears(&format!("e{}", id(1))).await;
    let over = one.queue.cancel(&[id(1)]).await.unwrap();
    assert_eq!(over, [CancelAnswer::Over]);
}

#[tokio::test]
async fn spent_blobs_are_listed_once_their_time_has_come() {
    let server = TestRedis::start().await;
    let one = Member::join(&server, 1).await;
    one.queue
        .keep_blobs(&[[1; 32], [2; 32]], 1_000)
        .await
        .unwrap();
    one.queue.keep_blobs(&[[2; 32]], 3_000).await.unwrap();
    one.queue.keep_blobs(&[[2; 32]], 2_000).await.unwrap();
    assert_eq!(one.queue.spent_blobs(2_500, 10).await.unwrap(), [[1; 32]]);
    assert_eq!(one.queue.spent_blobs(3_500, 10).await.unwrap(), [[2; 32]]);
    assert!(one.queue.spent_blobs(9_000, 10).await.unwrap().is_empty());
}

/// The scripts do what `queue::model` says, step by step, whatever is asked of them.
#[tokio::test]
async fn the_scripts_and_their_model_agree() {
    let node = |number: u64| NodeId(number + 1);
    let server = TestRedis::start().await;
    let mut members = Vec::new();
    for number in 0..4 {
        members.push(Member::join(&server, node(number).0).await);
    }
    let mut model = Model::default();
    let mut chance = Chance(7);
    let mut taken_of_others = 0;
    let mut running: Vec<(u64, u64)> = Vec::new();
    for step in 0..500u64 {
        let member = chance.below(4);
        if chance.below(5) < 2 {
            let mut places = Vec::new();
            let first = chance.below(4);
            for number in 0..4 {
                let delay_ms = match (number == first, chance.below(6)) {
                    (true, _) | (_, 0) => 0,
                    (_, 1) => continue,
                    (_, other) => [5, 20, 60, 200][other as usize - 2],
                };
                places.push(Place {
                    node: node(number),
                    fetch_bytes: delay_ms * 1_000,
                    delay_ms,
                });
            }
            if chance.below(6) == 0 {
                places.clear();
            }
            let placement = Placement {
                places,
                data: chance.below(5),
                function: chance.below(3),
                ..Placement::default()
            };
            let mut submission = job(step as usize, &[]);
            submission.places = places_text(&placement);
            submission.priority = chance.below(2) as i32;
            let jobs = [submission.clone()];
            let queue = &members[member as usize].queue;
            let submitted = queue.submit(&[], &jobs, 0usize).await.unwrap();
            model.submit(step, submission.priority, &placement, submitted.now_ms);
        } else {
            let jobs = 1 + chance.below(3) as usize;
            let want = Want {
                jobs,
                of_others: chance.below(jobs as u64 + 1) as usize,
                slots: 1 + chance.below(3),
            };
            let took: Vec<Took> = (0..chance.below(3))
                .map(|_| Took {
                    function: chance.below(3),
                    call_ms: chance.below(400),
                    longest_ms: chance.below(200),
                })
                .collect();
            model.learn(&took);
            let queue = &members[member as usize].queue;
            let claims = queue.claim(&["default".into()], want, &took).await.unwrap();
            let got: Vec<u64> = claims
                .jobs
                .iter()
                .map(|claimed| u64::from_str_radix(&claimed.job, 16).unwrap())
                .collect();
            let before = model.clone();
            let (expected, next) = model.claim(node(member), want, claims.now_ms);
            let context = || format!("step {step}, node {member}, {want:?}: {before:#?}");
            assert_eq!(got, expected, "{}", context());
            assert_eq!(claims.next, next, "{}", context());
            running.extend(got.iter().map(|job| (member, *job)));
            taken_of_others +=
                usize::from(claims.next != Next::Now && want.of_others > 0) * got.len();
        }
        if !running.is_empty() && chance.below(3) == 0 {
            let (member, done) = running.swap_remove(chance.below(running.len() as u64) as usize);
            let name = id(done as usize);
            let ended = members[member as usize].finish(&name, false).await;
            assert_eq!(ended, Finished::Ended);
            model.finish(node(member));
        }
        tokio::time::sleep(Duration::from_millis(chance.below(6))).await;
    }
    assert!(
        taken_of_others > 20,
        "{taken_of_others}: it tries what it is about"
    );
}

/// Numbers by chance, the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn kept(number: usize, hash: u8, group: &str) -> NewKept {
    NewKept {
        id: id(number),
        hash: [hash; 32],
        size_bytes: 7,
        group: group.into(),
        name: format!("key {number}"),
    }
}

#[tokio::test]
async fn holders_of_kept_values_are_known_told_and_remembered() {
    let server = TestRedis::start().await;
    let (one, two) = (
        Member::join(&server, 1).await,
        Member::join(&server, 2).await,
    );
    one.queue
        .keep(&[kept(1, 1, "pool"), kept(2, 2, "pool")], Some(5_000))
        .await
        .unwrap();
    one.queue.keep(&[kept(3, 3, "")], None).await.unwrap();
    // A value that was replaced or never was is not held.
    let brought = [(id(1), [1; 32]), (id(2), [9; 32]), (id(8), [8; 32])];
    assert_eq!(two.queue.hold(&brought, 9_000).await.unwrap(), 1);
    let ids = [id(1), id(2), id(3), id(8)];
    let known = two.queue.kept(&ids).await.unwrap();
    let first = known[0].as_ref().unwrap();
    assert_eq!(first.holders, [NodeId(1), NodeId(2)]);
    assert_eq!((first.size_bytes, first.hash), (7, [1; 32]));
    assert_eq!(known[1].as_ref().unwrap().holders, [NodeId(1)]);
    assert!(known[3].is_none());
    assert_eq!(one.queue.kept_group("pool").await.unwrap().len(), 2);
    let due = one.queue.kept_here(Some(6_000)).await.unwrap();
    assert_eq!(
        due.into_iter().collect::<HashSet<_>>(),
        HashSet::from([id(1), id(2)])
    );
    one.queue.prolong_kept(&[id(1)], 8_000).await.unwrap();
    assert_eq!(one.queue.kept_here(Some(6_000)).await.unwrap(), [id(2)]);
    assert_eq!(one.queue.kept_for_ever().await.unwrap(), [id(3)]);

    // One holder leaves: the other has it still; the last one is remembered by name.
    let gone = [id(1), id(2)];
    assert_eq!(one.queue.leave_kept(&gone, "host1").await.unwrap(), 1);
    let known = two.queue.kept(&ids).await.unwrap();
    assert_eq!(known[0].as_ref().unwrap().holders, [NodeId(2)]);
    let lost = known[1].as_ref().unwrap();
    assert_eq!(
        (lost.holders.len(), lost.lost_with.as_deref()),
        (0, Some("host1"))
    );
    assert_eq!(one.queue.kept_group("pool").await.unwrap().len(), 1);

    // What is replaced or forgotten is told to its holders.
    one.queue
        .keep(&[kept(1, 7, "pool")], Some(5_000))
        .await
        .unwrap();
    two.hears(&format!("k{}", "01".repeat(32))).await;
    let known = two.queue.kept(&[id(1)]).await.unwrap().remove(0).unwrap();
    assert_eq!((known.hash, known.holders), ([7; 32], vec![NodeId(1)]));
    assert!(two.queue.kept_here(None).await.unwrap().is_empty());
    assert_eq!(two.queue.forget_kept(&[id(1), id(8)]).await.unwrap(), 1);
    one.hears(&format!("k{}", "07".repeat(32))).await;
    assert!(two.queue.kept(&[id(1)]).await.unwrap()[0].is_none());
    assert!(one.queue.kept_group("pool").await.unwrap().is_empty());
}

/// A node whose limits are small.
async fn limited(server: &TestRedis, limits: Limits) -> Member {
    let member = Member::join(server, 1).await;
    Member {
        queue: member.queue.with_limits(limits),
        heard: member.heard,
    }
}

async fn number(member: &Member, key: &str) -> u64 {
    let mut command = redis::cmd("GET");
    command.arg(key);
    match member.queue.redis().run(&command).await.unwrap() {
        redis::Value::BulkString(bytes) => String::from_utf8(bytes).unwrap().parse().unwrap(),
        redis::Value::Nil => 0,
        other => panic!("{other:?}"),
    }
}

fn large(number: usize, bytes: usize) -> Submission {
    Submission {
        body: vec![b'x'; bytes],
        ..job(number, &[])
    }
}

#[tokio::test]
async fn no_more_jobs_go_on_than_may() {
    let server = TestRedis::start().await;
    let node = limited(
        &server,
        Limits {
            going_max: 20,
            ..Limits::default()
        },
    )
    .await;
    let jobs: Vec<_> = (0..20).map(|number| job(number, &[])).collect();
    node.submit(&jobs, 0).await;
    let full = async |jobs: &[Submission]| node.queue.submit(&[], jobs, 0usize).await.unwrap().full;
    assert_eq!(full(&[job(20, &[]), job(21, &[])]).await, Some(Full::Jobs));
    assert_eq!(node.standing(&id(20)).await, Standing::Unknown);
    // What is sent again is there already.
    assert_eq!(full(&jobs[5..15]).await, None);
    // What jobs make may take a tenth more: those wait for it.
    let made = |number| Submission {
        outer: Some(id(0)),
        ..job(number, &[])
    };
    assert_eq!(full(&[made(30), made(31)]).await, None);
    assert_eq!(full(&[made(32)]).await, Some(Full::Jobs));
    // Three end: there is room for one of the others.
    let claimed = node.claim(3).await;
    assert_eq!(claimed.len(), 3);
    for job in claimed {
        assert_eq!(node.finish(&job, false).await, Finished::Ended);
    }
    assert_eq!(full(&[job(20, &[]), job(21, &[])]).await, Some(Full::Jobs));
    assert_eq!(full(&[job(20, &[])]).await, None);
}

#[tokio::test]
async fn large_bodies_are_counted_until_their_jobs_have_ended() {
    let server = TestRedis::start().await;
    let node = limited(
        &server,
        Limits {
            bodies_bytes_max: 10_000,
            ..Limits::default()
        },
    )
    .await;
    let full = async |jobs: &[Submission]| node.queue.submit(&[], jobs, 0usize).await.unwrap().full;
    // Small ones do not count.
    let small: Vec<_> = (100..140).map(|number| large(number, 1024)).collect();
    assert_eq!(full(&small).await, None);
    assert_eq!(full(&[large(1, 6_000), large(2, 3_000)]).await, None);
    assert_eq!(number(&node, "ks:bodies").await, 9_000);
    assert_eq!(full(&[large(3, 2_000)]).await, Some(Full::Bodies));
    assert_eq!(full(&[large(1, 6_000), large(2, 3_000)]).await, None);
    assert_eq!(number(&node, "ks:bodies").await, 9_000);
    // Cancelled, and ended by the one who took it; a retry keeps its body.
    let cancelled = node.queue.cancel(&[id(1)]).await.unwrap();
    assert_eq!(cancelled, [CancelAnswer::Taken]);
    assert_eq!(node.finish(&id(1), false).await, Finished::Ended);
    assert_eq!(node.finish(&id(1), false).await, Finished::Refused);
    assert_eq!(number(&node, "ks:bodies").await, 3_000);
    assert_eq!(full(&[large(3, 2_000)]).await, None);
    node.claim(50).await;
    for job in [2, 3, 100, 101] {
        assert_eq!(node.finish(&id(job), false).await, Finished::Ended);
    }
    assert_eq!(number(&node, "ks:bodies").await, 0);
}

#[tokio::test]
async fn the_oldest_ends_go_when_they_take_too_much() {
    let server = TestRedis::start().await;
    let node = limited(
        &server,
        Limits {
            ends_bytes_max: 10_000,
            ..Limits::default()
        },
    )
    .await;
    let jobs: Vec<_> = (0..10).map(|number| job(number, &[])).collect();
    node.submit(&jobs, 0).await;
    node.claim(10).await;
    for number in 0..10 {
        let end = Finish {
            ended: vec![b'x'; if number % 2 == 0 { 3_000 } else { 10 }],
            ..end(&id(number), false)
        };
        let was_many = node.queue.ends_are_many();
        assert_eq!(was_many, number > 2, "{number}");
        node.queue.finish(&[end]).await.unwrap();
        assert!(number_of_bytes(&node).await <= 10_000);
    }
    // 0 and 2 of 3,000 bytes went, and 1 between them; the others are there.
    for number in 0..10 {
        let gone = node.standing(&id(number)).await == Standing::Unknown;
        assert_eq!(gone, number < 3, "{number}");
    }
}

async fn number_of_bytes(node: &Member) -> u64 {
    number(node, "ks:ended:untold:bytes").await
}

#[tokio::test]
async fn where_redis_has_no_memory_left_jobs_end_and_none_is_taken() {
    let server = TestRedis::start().await;
    let node = Member::join(&server, 1).await;
    node.submit(&[job(0, &[]), job(1, &[]), job(2, &[])], 1)
        .await;
    let config = async |bytes: u64| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes);
        node.queue.redis().run(&command).await.unwrap();
    };
    config(1).await;
    let refused = node
        .queue
        .submit(&[], &[job(3, &[])], 0usize)
        .await
        .unwrap();
    assert_eq!(refused.full, Some(Full::Memory));
    assert_eq!(node.standing(&id(3)).await, Standing::Unknown);
    assert!(node.queue.renew().await.unwrap());
    assert_eq!(node.claim(1).await, [id(0)]);
    assert_eq!(node.finish(&id(0), false).await, Finished::Ended);
    let cancelled = node.queue.cancel(&[id(1)]).await.unwrap();
    assert_eq!(cancelled, [CancelAnswer::Taken]);
    assert_eq!(node.finish(&id(1), false).await, Finished::Ended);
    config(0).await;
    assert_eq!(node.submit(&[job(3, &[])], 0).await, Vec::<String>::new());
    assert_eq!(node.claim(5).await, [id(2), id(3)]);
}

#[tokio::test]
async fn all_jobs_that_go_on_are_found_however_many() {
    let server = TestRedis::start().await;
    let node = Member::join(&server, 1).await;
    let jobs: Vec<_> = (0..10_000).map(|number| job(number, &[])).collect();
    for batch in jobs.chunks(200) {
        node.submit(batch, 0).await;
    }
    for job in node.claim(100).await {
        assert_eq!(node.finish(&job, false).await, Finished::Ended);
    }
    let expected: HashSet<String> = (100..10_000).map(id).collect();
    assert_eq!(node.queue.all_going().await.unwrap(), expected);
}
