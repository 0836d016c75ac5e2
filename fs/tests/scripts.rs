//! Each Lua script alone, on a real Redis, by its own words.
#[path = "namespace/store.rs"]
#[allow(dead_code)]
mod store;

use ks_fs::catalog::transaction::{Check, Operation, Otherwise, Outcome, Place, Transaction};
use ks_fs::record::{Event, NodeId};
use ks_fs::redis_client::{Redis, Script};
use ks_fs::testing::TestRedis;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::Store;

async fn connect(server: &TestRedis) -> Redis {
    Redis::connect(server.target(), false, Arc::new(|_| {}))
        .await
        .unwrap()
}

async fn run(redis: &Redis, words: &[&str]) -> Value {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    redis.run(&command).await.unwrap()
}

async fn call(redis: &Redis, source: &'static str, words: &[&str]) -> Value {
    let args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    redis
        .script(&Script::new(source), &[], &args)
        .await
        .unwrap()
}

/// Two names in directory 1: file 2 (held by node a), directory 3.
async fn small_tree(redis: &Redis) {
    for words in [
        &[
            "HSET", "ks:d:1", "/t", "5", "/n", "1", "f", "2 0", "d", "3 1",
        ][..],
        &["HSET", "ks:d:3", "/t", "6", "/n", "0"],
        &["SET", "ks:i:1", "root"],
        &["SET", "ks:i:2", "file"],
        &["SET", "ks:i:3", "dir"],
        &["HSET", "ks:h:2", "a", "whole"],
    ] {
        run(redis, words).await;
    }
}

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn list(values: Vec<Value>) -> Value {
    Value::Array(values)
}

#[tokio::test]
async fn lookup_tells_a_name_and_its_inode() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    small_tree(&redis).await;
    let source = include_str!("../src/catalog/lookup.lua");
    let file = list(vec![text("2 0"), text("file"), Value::Nil, Value::Nil]);
    assert_eq!(call(&redis, source, &["1", "f"]).await, file);
    let dir = list(vec![text("3 1"), text("dir"), text("6"), text("0")]);
    assert_eq!(call(&redis, source, &["1", "d"]).await, dir);
    assert_eq!(call(&redis, source, &["1", "none"]).await, list(vec![]));
    assert_eq!(call(&redis, source, &["77", "f"]).await, list(vec![]));
}

#[tokio::test]
async fn inodes_are_told_by_number() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    small_tree(&redis).await;
    let source = include_str!("../src/catalog/inodes.lua");
    let answer = call(&redis, source, &["2 1", "3 1", "9 1", "3 0"]).await;
    let nil = || Value::Nil;
    let expected = vec![
        text("file"),
        nil(),
        nil(),
        text("dir"),
        text("6"),
        text("0"),
        nil(),
        nil(),
        nil(),
        text("dir"),
        nil(),
        nil(),
    ];
    assert_eq!(answer, list(expected));
}

#[tokio::test]
async fn resolve_walks_as_far_as_there_is_something() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    small_tree(&redis).await;
    let source = include_str!("../src/catalog/resolve.lua");
    let file = vec![text("2 0"), text("file")];
    let held = list(vec![text("a"), text("whole")]);
    let answer = call(&redis, source, &["f"]).await;
    assert_eq!(answer, list(vec![list(file), Value::Nil, Value::Nil, held]));
    let dir = vec![text("3 1"), text("dir")];
    let answer = call(&redis, source, &["d"]).await;
    assert_eq!(
        answer,
        list(vec![list(dir.clone()), text("6"), text("0"), list(vec![])])
    );
    let answer = call(&redis, source, &["d", "none", "x"]).await;
    assert_eq!(
        answer,
        list(vec![list(dir), Value::Nil, Value::Nil, list(vec![])])
    );
}

#[tokio::test]
async fn locate_tells_the_holders() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    small_tree(&redis).await;
    let source = include_str!("../src/catalog/locate.lua");
    let held = list(vec![text("a"), text("whole")]);
    let answer = call(&redis, source, &["2"]).await;
    assert_eq!(
        answer,
        list(vec![text("file"), Value::Nil, Value::Nil, held])
    );
    let answer = call(&redis, source, &["9"]).await;
    assert_eq!(
        answer,
        list(vec![Value::Nil, Value::Nil, Value::Nil, list(vec![])])
    );
}

#[tokio::test]
async fn nodes_come_with_their_beats() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    run(&redis, &["HSET", "ks:nodes", "a", "info", "b", "other"]).await;
    run(&redis, &["SET", "ks:alive:a", "1 5"]).await;
    let source = include_str!("../src/catalog/nodes.lua");
    let expected = vec![
        text("a"),
        text("info"),
        text("1 5"),
        text("b"),
        text("other"),
        Value::Nil,
    ];
    assert_eq!(call(&redis, source, &[]).await, list(expected));
}

#[tokio::test]
async fn a_large_directory_comes_in_pages_each_name_at_least_once() {
    const NAMES: usize = 5_000;
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    let mut pipeline = redis::pipe();
    pipeline
        .cmd("HSET")
        .arg("ks:d:1")
        .arg("/t")
        .arg(5)
        .arg("/n")
        .arg(0);
    for number in 0..NAMES {
        let ino = number + 10;
        pipeline
            .cmd("HSET")
            .arg("ks:d:1")
            .arg(format!("n{number}"))
            .arg(format!("{ino} 0"));
        pipeline
            .cmd("SET")
            .arg(format!("ks:i:{ino}"))
            .arg(format!("inode{number}"));
    }
    redis.pipe(&pipeline).await.unwrap();
    let source = include_str!("../src/catalog/list.lua");
    let (mut cursor, mut pages, mut names) = ("0".to_owned(), 0, BTreeSet::new());
    loop {
        let answer = call(&redis, source, &["1", &cursor]).await;
        let (next, time, subdirectories, rows): (String, String, String, Vec<Option<String>>) =
            redis::from_redis_value(answer).unwrap();
        assert_eq!((time.as_str(), subdirectories.as_str()), ("5", "0"));
        for row in rows.chunks(5) {
            let [Some(name), Some(entry), Some(inode), None, None] = row else {
                panic!("{row:?}");
            };
            let number: usize = name[1..].parse().unwrap();
            assert_eq!(
                (entry, inode),
                (&format!("{} 0", number + 10), &format!("inode{number}"))
            );
            names.insert(number);
        }
        pages += 1;
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(names.len(), NAMES);
    assert!(pages <= NAMES / 1000 + 1, "{pages} pages");
    let none = call(&redis, source, &["77", "0"]).await;
    assert_eq!(
        none,
        list(vec![text("0"), Value::Nil, Value::Nil, list(vec![])])
    );
}

#[tokio::test]
async fn commit_numbers_its_events() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    let commit = Script::new(include_str!("../src/catalog/commit.lua"));
    let change = Transaction {
        event: Some(Event::Attributes {
            ino: 1,
            path: vec![],
        }),
        ..Transaction::default()
    };
    let mut before = Default::default();
    for nonce in 0..3 {
        let words = change.arguments(NodeId(7), nonce);
        let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
        let reply = redis.script(&commit, &[], &args).await.unwrap();
        let Some(Outcome::Done {
            event, previous, ..
        }) = Outcome::from_reply(reply)
        else {
            panic!("not done");
        };
        assert_eq!(previous, before);
        assert!(event > previous);
        before = event;
    }
    assert_eq!(run(&redis, &["XLEN", "ks:events"]).await, Value::Int(3));
}

const STRINGS: [Place; 2] = [Place::Inode(1), Place::Inode(2)];
const HASHES: [Place; 2] = [Place::Directory(1), Place::Holdings(2)];
const SETS: [Place; 2] = [Place::Links(1), Place::Links(2)];

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(b"a".to_vec()), Just(b"\0b\xff".to_vec()), Just(vec![])]
}

fn check() -> impl Strategy<Value = Check> {
    let any = prop::sample::select([STRINGS, HASHES, SETS].concat());
    let (string, hash, set) = places();
    prop_oneof![
        any.clone().prop_map(Check::Absent),
        any.prop_map(Check::Present),
        (string, word()).prop_map(|(p, v)| Check::Equals(p, v)),
        (hash.clone(), word()).prop_map(|(p, f)| Check::NoField(p, f)),
        (hash.clone(), word()).prop_map(|(p, f)| Check::Field(p, f)),
        (hash.clone(), word(), word()).prop_map(|(p, f, v)| Check::FieldEquals(p, f, v)),
        (hash, 0usize..3).prop_map(|(p, n)| Check::Fields(p, n)),
        (set, word()).prop_map(|(p, m)| Check::Member(p, m)),
    ]
}

type Some1 = prop::sample::Select<Place>;

fn places() -> (Some1, Some1, Some1) {
    let one = |places: [Place; 2]| prop::sample::select(places.to_vec());
    (one(STRINGS), one(HASHES), one(SETS))
}

fn operation() -> impl Strategy<Value = Operation> {
    let any = prop::sample::select([STRINGS, HASHES, SETS].concat());
    let (string, hash, set) = places();
    prop_oneof![
        (string.clone(), word()).prop_map(|(p, v)| Operation::Set(p, v)),
        (string, word()).prop_map(|(p, v)| Operation::SetExpiring(p, v, 600_000)),
        any.prop_map(Operation::Delete),
        (hash.clone(), word(), word()).prop_map(|(p, f, v)| Operation::SetField(p, f, v)),
        (hash.clone(), word()).prop_map(|(p, f)| Operation::DeleteField(p, f)),
        (hash, -2i64..3).prop_map(|(p, n)| Operation::Increase(p, b"count".to_vec(), n)),
        (set.clone(), word()).prop_map(|(p, m)| Operation::AddMember(p, m)),
        (set, word()).prop_map(|(p, m)| Operation::RemoveMember(p, m)),
    ]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let checks = prop::collection::vec(check(), 0..2);
    (checks, prop::collection::vec(operation(), 0..5)).prop_map(|(checks, operations)| {
        Transaction {
            conditions: checks
                .into_iter()
                .map(|check| (check, Otherwise::Stale))
                .collect(),
            operations,
            event: None,
        }
    })
}

/// All that Redis has of the places above, as the store has it.
async fn contents(redis: &Redis) -> Store {
    let mut store = Store::default();
    for place in STRINGS {
        let value = redis.run(redis::cmd("GET").arg(place.key())).await.unwrap();
        if let Value::BulkString(value) = value {
            store.strings.insert(place, value);
        }
    }
    for place in HASHES {
        let value = redis
            .run(redis::cmd("HGETALL").arg(place.key()))
            .await
            .unwrap();
        let hash: BTreeMap<Vec<u8>, Vec<u8>> = redis::from_redis_value(value).unwrap();
        if !hash.is_empty() {
            store.hashes.insert(place, hash);
        }
    }
    for place in SETS {
        let value = redis
            .run(redis::cmd("SMEMBERS").arg(place.key()))
            .await
            .unwrap();
        let set: BTreeSet<Vec<u8>> = redis::from_redis_value(value).unwrap();
        if !set.is_empty() {
            store.sets.insert(place, set);
        }
    }
    store
}

#[test]
fn commit_does_what_the_store_in_memory_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (server, redis) = runtime.block_on(async {
        let server = TestRedis::start().await;
        let redis = connect(&server).await;
        (server, redis)
    });
    let commit = Script::new(include_str!("../src/catalog/commit.lua"));
    let mut runner = TestRunner::new(Config::with_cases(150));
    let ran = runner.run(
        &prop::collection::vec(transaction(), 1..15),
        |transactions| {
            runtime.block_on(async {
                run(&redis, &["FLUSHALL"]).await;
                let mut store = Store::default();
                for change in transactions {
                    let words = change.arguments(NodeId(1), 1);
                    let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
                    let reply = redis.script(&commit, &[], &args).await.unwrap();
                    let outcome = Outcome::from_reply(reply).unwrap();
                    let expected = store.commit(&change);
                    // Redis has no empty hashes.
                    store.hashes.retain(|_, hash| !hash.is_empty());
                    match outcome {
                        Outcome::Done { .. } => prop_assert!(expected.is_ok(), "{:?}", change),
                        Outcome::Failed(_) => prop_assert!(expected.is_err(), "{:?}", change),
                    }
                    let there = contents(&redis).await;
                    prop_assert_eq!(&there.strings, &store.strings, "{:?}", &change);
                    prop_assert_eq!(&there.hashes, &store.hashes, "{:?}", &change);
                    prop_assert_eq!(&there.sets, &store.sets, "{:?}", &change);
                }
                Ok(())
            })
        },
    );
    ran.unwrap();
    drop(redis);
    drop(server);
}

#[tokio::test]
async fn found_tells_many_names_of_a_directory() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    small_tree(&redis).await;
    run(&redis, &["HSET", "ks:d:3", "deep", "4 0"]).await;
    run(&redis, &["SET", "ks:i:4", "deep file"]).await;
    let source = include_str!("../src/catalog/found.lua");
    let answer = call(&redis, source, &["0", "none", "d", "f"]).await;
    let nil = || Value::Nil;
    let mut expected = vec![text("1"), nil(), nil()];
    expected.extend([text("3 1"), text("dir"), text("2 0"), text("file")]);
    assert_eq!(answer, list(expected));
    let answer = call(&redis, source, &["1", "d", "deep"]).await;
    let expected = vec![text("3"), text("4 0"), text("deep file")];
    assert_eq!(answer, list(expected));
    assert_eq!(
        call(&redis, source, &["1", "none", "x"]).await,
        list(vec![])
    );
    // More than one call of Redis takes.
    let names: Vec<String> = (0..2_500).map(|number| format!("n{number}")).collect();
    let mut words = vec!["1", "d"];
    words.extend(names.iter().map(String::as_str));
    words.push("deep");
    let Value::Array(answer) = call(&redis, source, &words).await else {
        panic!("a list")
    };
    assert_eq!(answer.len(), 1 + 2 * 2_501);
    assert_eq!(answer[5_001..], [text("4 0"), text("deep file")]);
}

#[tokio::test]
async fn adopt_enters_what_is_free_with_one_event() {
    let server = TestRedis::start().await;
    let redis = connect(&server).await;
    small_tree(&redis).await;
    let source = include_str!("../src/catalog/adopt.lua");
    let three = [
        "1", "a", "9", "event", "f", "5 0", "other", "a", "whole", "g", "6 0", "new", "a", "whole",
        "l", "7 2", "link", "", "",
    ];
    let Value::Array(answer) = call(&redis, source, &three).await else {
        panic!("a list")
    };
    let [last, previous, done @ ..] = &answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(previous, &text("0-0"));
    assert_eq!(done, [Value::Int(0), Value::Int(1), Value::Int(1)]);
    let get = async |key: &str| run(&redis, &["GET", key]).await;
    assert_eq!(get("ks:i:5").await, Value::Nil, "its name was taken");
    assert_eq!(get("ks:i:6").await, text("new"));
    assert_eq!(run(&redis, &["HGET", "ks:d:1", "f"]).await, text("2 0"));
    assert_eq!(run(&redis, &["HGET", "ks:h:6", "a"]).await, text("whole"));
    assert_eq!(run(&redis, &["EXISTS", "ks:h:7"]).await, Value::Int(0));
    assert_eq!(run(&redis, &["XLEN", "ks:events"]).await, Value::Int(1));
    // Again: all are taken, and nothing is told.
    let Value::Array(again) = call(&redis, source, &three).await else {
        panic!("a list")
    };
    assert_eq!(again[..2], [text(""), text("")]);
    assert_eq!(again[2..], [Value::Int(0), Value::Int(0), Value::Int(0)]);
    // The next names the event before it; while journals are brought, what is new is later than they.
    run(&redis, &["HSET", "ks:recovered", "1", "x"]).await;
    let one = ["3", "a", "9", "event", "f", "8 0", "file", "a", "whole"];
    let Value::Array(next) = call(&redis, source, &one).await else {
        panic!("a list")
    };
    assert_eq!((&next[1], &next[2]), (last, &Value::Int(1)));
    assert_eq!(run(&redis, &["HGET", "ks:recovered", "8"]).await, text("~"));
    let gone = ["77", "a", "9", "event", "f", "8 0", "file", "a", "whole"];
    assert_eq!(call(&redis, source, &gone).await, list(vec![]));
}
