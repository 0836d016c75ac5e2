//! The Redis client and the private redis-server, against real redis-server processes.
use ks_fs::redis_client::{Push, Redis, RedisError, RedisTarget, Script};
use ks_fs::redis_server::RedisServer;
use ks_fs::testing::TestRedis;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

type Pushes = Arc<Mutex<Vec<Push>>>;

async fn connect(redis: &TestRedis, tracking: bool) -> (Redis, Pushes) {
    let pushes: Pushes = Arc::default();
    let sink = pushes.clone();
    let on_push = Arc::new(move |push| sink.lock().unwrap().push(push));
    let connected = Redis::connect(redis.target(), tracking, on_push).await;
    (connected.unwrap(), pushes)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn set(key: &str, value: &str) -> redis::Cmd {
    let mut command = redis::cmd("SET");
    command.arg(key).arg(value);
    command
}

fn get(key: &str) -> redis::Cmd {
    let mut command = redis::cmd("GET");
    command.arg(key);
    command
}

async fn text(redis: &Redis, command: &redis::Cmd) -> String {
    redis::from_redis_value(redis.run(command).await.unwrap()).unwrap()
}

#[tokio::test]
async fn commands_pipelines_and_scripts_are_answered() {
    let server = TestRedis::start().await;
    let (redis, _) = connect(&server, false).await;
    redis.run(&set("a", "1")).await.unwrap();
    assert_eq!(text(&redis, &get("a")).await, "1");

    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg("b").arg("2").cmd("GET").arg("b");
    let answers = redis.pipe(&pipeline).await.unwrap();
    assert_eq!(answers.len(), 2);

    let script = Script::new("return {KEYS[1], ARGV[1]}");
    for _ in 0..2 {
        let answer = redis.script(&script, &[b"k"], &[b"v"]).await.unwrap();
        let parts: Vec<String> = redis::from_redis_value(answer).unwrap();
        assert_eq!(parts, ["k", "v"]);
    }
    let wrong = redis.run(redis::cmd("HGET").arg("a").arg("f")).await;
    assert!(matches!(wrong, Err(RedisError::Refused(text)) if text.starts_with("WRONGTYPE")));
}

#[tokio::test]
async fn changes_of_others_and_a_flush_are_pushed() {
    let server = TestRedis::start().await;
    let (mine, pushes) = connect(&server, true).await;
    let (other, _) = connect(&server, false).await;
    mine.run(&set("ks:meta:1", "mine")).await.unwrap();
    other.run(&set("ks:other", "untracked")).await.unwrap();
    other.run(&set("ks:meta:2", "theirs")).await.unwrap();
    until("an invalidation", || !pushes.lock().unwrap().is_empty()).await;
    let seen = pushes.lock().unwrap().clone();
    assert!(
        matches!(&seen[..], [Push::Invalidated(keys)] if keys == &[b"ks:meta:2".to_vec()]),
        "{seen:?}"
    );
    other.run(&redis::cmd("FLUSHALL")).await.unwrap();
    until("a reset", || {
        matches!(pushes.lock().unwrap().last(), Some(Push::Reset))
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_made_anew_with_its_subscriptions() {
    let server = TestRedis::start().await;
    let (redis, pushes) = connect(&server, true).await;
    redis.subscribe(b"news").await.unwrap();
    redis.run(&set("kept", "yes")).await.unwrap();
    server.kill();
    until("the loss to be noticed", || !redis.is_connected()).await;
    // Waits for the next connection; what was acknowledged before the kill is still there.
    assert_eq!(text(&redis, &get("kept")).await, "yes");
    // Told before the first answer: nothing that was read before is trusted beside what is read now.
    assert!(matches!(pushes.lock().unwrap().first(), Some(Push::Reset)));
    let (other, _) = connect(&server, false).await;
    let publish = redis::cmd("PUBLISH").arg("news").arg("hello").to_owned();
    other.run(&publish).await.unwrap();
    until("the message", || {
        pushes.lock().unwrap().iter().any(|push| {
            matches!(push, Push::Message { channel, payload } if channel == b"news" && payload == b"hello")
        })
    })
    .await;
}

#[tokio::test]
async fn a_command_without_a_connection_ends_at_its_deadline() {
    let server = TestRedis::start().await;
    let (redis, _) = connect(&server, false).await;
    drop(server);
    until("the loss to be noticed", || !redis.is_connected()).await;
    let started = Instant::now();
    let answer = redis.run(&get("a")).await;
    assert!(
        matches!(answer, Err(RedisError::Unreachable(_))),
        "{answer:?}"
    );
    let limit = ks_fs::redis_client::COMMAND_DEADLINE + Duration::from_secs(1);
    assert!(started.elapsed() < limit);
    assert!(redis.is_away());
    let started = Instant::now();
    assert!(redis.run(&get("a")).await.is_err());
    assert!(
        started.elapsed() < 2 * ks_fs::redis_client::ASKED_WAIT,
        "soon by now"
    );
}

#[tokio::test]
async fn who_asks_after_a_long_absence_finds_redis_as_soon_as_it_is_back() {
    let mut server = TestRedis::start().await;
    let (redis, _) = connect(&server, false).await;
    server.end().await;
    until("the loss to be noticed", || !redis.is_connected()).await;
    // By now the attempts are seconds apart where nobody asks.
    tokio::time::sleep(ks_fs::redis_client::BRIDGED + Duration::from_secs(1)).await;
    assert!(redis.run(&get("a")).await.is_err());
    server.restart().await.unwrap();
    let back = Instant::now();
    let answer = redis.run(&set("a", "1")).await;
    assert!(answer.is_ok(), "{answer:?} after {:?}", back.elapsed());
}

#[tokio::test]
async fn nobody_without_the_password_gets_in() {
    let server = TestRedis::start().await;
    let without = RedisTarget::Socket {
        path: server.server().socket(),
        password: Some("wrong".into()),
        db: 0,
    };
    let answer = Redis::connect(without, false, Arc::new(|_| {})).await;
    assert!(matches!(answer, Err(RedisError::Refused(_))));
    use std::os::unix::fs::PermissionsExt;
    for file in ["redis/password", "redis/redis.conf"] {
        let mode = std::fs::metadata(server.directory().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_restart_in_order_keeps_everything_and_leaves_no_process() {
    let mut server = TestRedis::start().await;
    let (redis, _) = connect(&server, false).await;
    redis.run(&set("kept", "yes")).await.unwrap();
    let old = server.server().pid().unwrap();
    server.restart().await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{old}")).exists());
    assert_eq!(text(&redis, &get("kept")).await, "yes");
}

#[tokio::test]
async fn who_lived_when_redis_went_lives_when_it_is_back() {
    let mut server = TestRedis::start().await;
    let (redis, _) = connect(&server, false).await;
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    for (key, at_ms) in [
        ("lived", now_ms - 5000),
        ("beat", now_ms),
        ("died", now_ms - 7000),
    ] {
        let mut note = redis::cmd("HSET");
        note.arg("ks:renewed")
            .arg(key)
            .arg(format!("{at_ms} 6000 its value"));
        redis.run(&note).await.unwrap();
    }
    // Nobody was away: what stands is left as it is.
    let (again, _) = connect(&server, false).await;
    let exists = |key: &'static str| {
        let mut command = redis::cmd("EXISTS");
        command.arg(key);
        command
    };
    assert_eq!(
        again.run(&exists("lived")).await.unwrap(),
        redis::Value::Int(0)
    );
    drop((redis, again));
    server.restart().await.unwrap();
    let (redis, _) = connect(&server, false).await;
    assert_eq!(text(&redis, &get("lived")).await, "its value");
    assert_eq!(text(&redis, &get("beat")).await, "its value");
    assert_eq!(
        redis.run(&exists("died")).await.unwrap(),
        redis::Value::Int(0)
    );
    let mut left = redis::cmd("PTTL");
    left.arg("lived");
    let redis::Value::Int(left_ms) = redis.run(&left).await.unwrap() else {
        panic!("PTTL is a number");
    };
    assert!((4000..=6000).contains(&left_ms), "{left_ms}");
    // Once for each run of Redis.
    let mut remove = redis::cmd("DEL");
    remove.arg("lived");
    redis.run(&remove).await.unwrap();
    let (redis, _) = connect(&server, false).await;
    assert_eq!(
        redis.run(&exists("lived")).await.unwrap(),
        redis::Value::Int(0)
    );
}

#[tokio::test]
async fn what_an_earlier_daemon_left_is_ended_first() {
    let directory = tempfile::tempdir().unwrap();
    let first = RedisServer::start(directory.path()).await.unwrap();
    first.stop().await;
    // As if the daemon had been killed and its child had outlived it: nobody supervises this one.
    let state = directory.path().join("redis");
    let mut left = std::process::Command::new("redis-server")
        .arg(state.join("redis.conf"))
        .spawn()
        .unwrap();
    std::fs::write(state.join("pid"), left.id().to_string()).unwrap();
    until("the left-over to start", || {
        state.join("redis.sock").exists()
    })
    .await;
    let next = RedisServer::start(directory.path()).await.unwrap();
    let ended = left.try_wait().unwrap();
    assert!(ended.is_some(), "the left-over still runs");
    next.stop().await;
}

#[tokio::test]
async fn a_broken_file_is_told_in_one_line() {
    let mut server = TestRedis::start().await;
    let (redis, _) = connect(&server, false).await;
    redis.run(&set("a", "1")).await.unwrap();
    drop(redis);
    let directory = server.directory().join("redis/appendonlydir");
    let corrupt = move || {
        for file in std::fs::read_dir(&directory).unwrap() {
            std::fs::write(file.unwrap().path(), "nonsense").unwrap();
        }
    };
    corrupt();
    let error = server.restart().await.unwrap_err().to_string();
    assert!(error.contains("redis-server did not start"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

const CHILD_DIRECTORY: &str = "KS_TEST_CHILD_DIRECTORY";

/// Not a test of its own: the daemon that the next test kills.
#[tokio::test]
#[ignore = "started by the test below"]
async fn daemon_for_the_kill() {
    let directory = std::env::var_os(CHILD_DIRECTORY).unwrap();
    let server = RedisServer::start(directory.as_ref()).await.unwrap();
    let redis = Redis::connect(server.target(), false, Arc::new(|_| {}));
    redis.await.unwrap().run(&set("kept", "yes")).await.unwrap();
    let ready = std::path::Path::new(&directory).join("ready");
    std::fs::write(ready, server.pid().unwrap().to_string()).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn a_killed_daemon_leaves_no_redis_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon_for_the_kill", "--ignored"])
        .env(CHILD_DIRECTORY, directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ready = directory.path().join("ready");
    until("the daemon to start", || {
        std::fs::read_to_string(&ready).is_ok_and(|pid| !pid.is_empty())
    })
    .await;
    let pid = std::fs::read_to_string(&ready).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let next = RedisServer::start(directory.path()).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let runs = !status.is_empty() && !status.contains("State:\tZ");
    assert!(!runs, "the killed daemon's redis still runs");
    let redis = Redis::connect(next.target(), false, Arc::new(|_| {}))
        .await
        .unwrap();
    assert_eq!(text(&redis, &get("kept")).await, "yes");
    next.stop().await;
}

#[tokio::test]
async fn a_paused_redis_costs_a_deadline_and_comes_back() {
    use rustix::process::{Pid, Signal, kill_process};
    let server = TestRedis::start().await;
    let (redis, pushes) = connect(&server, true).await;
    redis.run(&set("kept", "yes")).await.unwrap();
    let pid = Pid::from_raw(server.server().pid().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let started = Instant::now();
    let answer = redis.run(&get("kept")).await;
    kill_process(pid, Signal::CONT).unwrap();
    assert!(matches!(answer, Err(RedisError::Timeout(_))), "{answer:?}");
    assert!(started.elapsed() < ks_fs::redis_client::COMMAND_DEADLINE + Duration::from_secs(1));
    // Until it is connected again, commands fail at once.
    until("the reset", || !pushes.lock().unwrap().is_empty()).await;
    until("the connection", || redis.is_connected()).await;
    assert_eq!(text(&redis, &get("kept")).await, "yes");
}
