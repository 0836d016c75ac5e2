//! Locks of several nodes on one Redis: exclusion, waking, deadlocks, ends of holders, a Redis that dies.
use ks_fs::catalog::Catalog;
use ks_fs::error::FsError;
use ks_fs::locks::{Kind, LEASE, Locks, Range, Space, Waiter, Want};
use ks_fs::record::NodeId;
use ks_fs::redis_client::{Redis, Script};
use ks_fs::testing::TestRedis;
use std::sync::Arc;
use std::time::{Duration, Instant};

const INO: u64 = 77;
const HANDLE: u64 = 5;
const SOON: Duration = Duration::from_secs(2);

async fn node(redis: &TestRedis, id: u64) -> Arc<Locks> {
    let catalog = Catalog::open(redis.target(), NodeId(id), Arc::new(|_| {})).await;
    Locks::new(catalog.unwrap())
}

fn want(owner: u64, kind: Option<Kind>, first: u64, last: u64) -> Want {
    Want {
        owner,
        kind,
        range: Range { first, last },
        pid: 1,
    }
}

fn exclusive(owner: u64) -> Want {
    want(owner, Some(Kind::Exclusive), 0, 9)
}

fn free(owner: u64) -> Want {
    want(owner, None, 0, 9)
}

async fn try_lock(locks: &Arc<Locks>, want: Want) -> Result<(), FsError> {
    let spaces = &[Space::Process];
    locks.change(INO, HANDLE, &want, spaces, None).await
}

fn waiting(locks: &Arc<Locks>, ino: u64, want: Want) -> (Waiter, WaitingTask) {
    let waiter = Waiter::default();
    let (locks, mine) = (locks.clone(), waiter.clone());
    let task = tokio::spawn(async move {
        let spaces = &[Space::Process];
        locks.change(ino, HANDLE, &want, spaces, Some(&mine)).await
    });
    (waiter, task)
}

type WaitingTask = tokio::task::JoinHandle<Result<(), FsError>>;

fn errno(result: Result<(), FsError>) -> i32 {
    result.map_or_else(|error| error.to_errno(), |()| 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_excludes_the_other_and_who_waits_is_woken_at_once() {
    let redis = TestRedis::start().await;
    let (first, second) = (node(&redis, 1).await, node(&redis, 2).await);
    try_lock(&first, exclusive(10)).await.unwrap();
    assert_eq!(errno(try_lock(&second, exclusive(20)).await), libc::EAGAIN);
    assert_eq!(errno(try_lock(&first, exclusive(11)).await), libc::EAGAIN);
    try_lock(&second, want(20, Some(Kind::Shared), 10, 19))
        .await
        .unwrap();
    let found = second.test(INO, &exclusive(20)).await.unwrap().unwrap();
    assert_eq!((found.range.first, found.range.last), (0, 9));
    assert!(!second.is_mine(&found));
    let (_, task) = waiting(&second, INO, exclusive(20));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!task.is_finished());
    let began = Instant::now();
    try_lock(&first, free(10)).await.unwrap();
    task.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "woken by push");
    // A closed descriptor and a released handle give back.
    second.closed(INO, 20).await;
    try_lock(&first, exclusive(10)).await.unwrap();
    first.released(INO, HANDLE + 1).await;
    assert_eq!(errno(try_lock(&second, exclusive(20)).await), libc::EAGAIN);
    first.released(INO, HANDLE).await;
    try_lock(&second, exclusive(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_refused_and_a_wait_can_be_ended() {
    let redis = TestRedis::start().await;
    let (first, second) = (node(&redis, 1).await, node(&redis, 2).await);
    let other = INO + 1;
    try_lock(&first, exclusive(10)).await.unwrap();
    let spaces = &[Space::Process];
    second
        .change(other, HANDLE, &exclusive(20), spaces, None)
        .await
        .unwrap();
    let (waiter, task) = waiting(&first, other, exclusive(10));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, closing) = waiting(&second, INO, exclusive(20));
    let ended = tokio::time::timeout(SOON, closing).await.expect("at once");
    assert_eq!(errno(ended.unwrap()), libc::EDEADLK);
    waiter.end();
    let ended = tokio::time::timeout(SOON, task).await.expect("at once");
    assert_eq!(errno(ended.unwrap()), libc::EINTR);
    // Nobody waits for anybody any more.
    let (_, task) = waiting(&second, INO, exclusive(20));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!task.is_finished());
    try_lock(&first, free(10)).await.unwrap();
    assert_eq!(errno(task.await.unwrap()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_locks_of_a_node_that_has_died_end_with_its_lease() {
    let redis = TestRedis::start().await;
    let (first, second) = (node(&redis, 1).await, node(&redis, 2).await);
    try_lock(&first, exclusive(10)).await.unwrap();
    let (_, task) = waiting(&second, INO, exclusive(20));
    // The keeper of a node that lives renews it; one that is gone does not.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!task.is_finished());
    let began = Instant::now();
    drop(first);
    let granted = tokio::time::timeout(Duration::from_secs(30), task).await;
    granted.expect("30 s at most").unwrap().unwrap();
    assert!(
        began.elapsed() > LEASE / 3,
        "not before the lease had ended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_dies_keeps_what_was_locked() {
    let redis = TestRedis::start().await;
    let (first, second) = (node(&redis, 1).await, node(&redis, 2).await);
    try_lock(&first, exclusive(10)).await.unwrap();
    let (_, task) = waiting(&second, INO, want(20, Some(Kind::Exclusive), 0, 4));
    tokio::time::sleep(Duration::from_millis(200)).await;
    redis.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (_, third) = waiting(&second, INO, want(21, Some(Kind::Exclusive), 5, 9));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!task.is_finished() && !third.is_finished());
    try_lock(&first, free(10)).await.unwrap();
    let granted = tokio::time::timeout(Duration::from_secs(15), task).await;
    granted.expect("in time").unwrap().unwrap();
    let granted = tokio::time::timeout(Duration::from_secs(15), third).await;
    granted.expect("in time").unwrap().unwrap();
}

/// As if the node had been cut off for longer than its lease, and its file's table taken over.
async fn forget_all_locks(server: &TestRedis) {
    let connected = Redis::connect(server.target(), false, Arc::new(|_| {})).await;
    let script = Script::new(
        "for _, key in ipairs(redis.call('KEYS', 'ks:k*')) do redis.call('DEL', key) end return 1",
    );
    connected.unwrap().script(&script, &[], &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lock_is_told_until_its_handle_is_closed() {
    let server = TestRedis::start().await;
    let (first, second) = (node(&server, 1).await, node(&server, 2).await);
    // A blocked flock would give up what it had; asking for this space changes nothing.
    let spaces = &[Space::Process];
    let lock = |locks: Arc<Locks>, handle, want| async move {
        errno(locks.change(INO, handle, &want, spaces, None).await)
    };
    assert_eq!(lock(first.clone(), HANDLE, exclusive(10)).await, 0);
    forget_all_locks(&server).await;
    assert_eq!(lock(second.clone(), HANDLE, exclusive(20)).await, 0);
    let deadline = Instant::now() + Duration::from_secs(15);
    while lock(first.clone(), HANDLE, exclusive(10)).await != libc::ENOLCK {
        assert!(Instant::now() < deadline, "the loss is noticed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    second.released(INO, HANDLE).await;
    assert_eq!(
        lock(first.clone(), HANDLE, exclusive(10)).await,
        libc::ENOLCK
    );
    // The handle is closed; the kernel gives the owner's number to another.
    first.released(INO, HANDLE).await;
    assert_eq!(lock(first.clone(), HANDLE + 1, exclusive(10)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_count_one_number_up() {
    let redis = TestRedis::start().await;
    let counter = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut tasks = Vec::new();
    for id in 1..=4 {
        let (locks, counter) = (node(&redis, id).await, counter.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..25 {
                let waiter = Waiter::default();
                let spaces = &[Space::File];
                let change = |want: Want| {
                    let (locks, waiter) = (locks.clone(), waiter.clone());
                    async move {
                        locks
                            .change(INO, HANDLE, &want, spaces, Some(&waiter))
                            .await
                    }
                };
                change(exclusive(id)).await.unwrap();
                let before = counter.load(std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
                counter.store(before + 1, std::sync::atomic::Ordering::Relaxed);
                change(free(id)).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(counter.load(std::sync::atomic::Ordering::Relaxed), 100);
}
