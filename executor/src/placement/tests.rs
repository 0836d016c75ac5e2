use super::*;
use proptest::prelude::*;

fn node(id: u64) -> NodeFact {
    NodeFact {
        id: NodeId(id),
        name: format!("node{id}"),
        alive: true,
        read_only: false,
        serves: vec!["default".into(), "data".into()],
    }
}

fn wish<'a>(files: Vec<&'a FileFact>) -> Wish<'a> {
    Wish {
        files,
        queue: "default",
        python: None,
        node: None,
        near: Vec::new(),
        threshold_bytes: Some(THRESHOLD_BYTES),
        data: 0,
        function: 0,
        seed: 0,
    }
}

fn file(size_bytes: u64, holders: &[(u64, u64)]) -> FileFact {
    FileFact {
        size_bytes,
        holders: holders
            .iter()
            .map(|&(id, bytes)| (NodeId(id), bytes))
            .collect(),
    }
}

fn some_file() -> impl Strategy<Value = FileFact> {
    let holder = (1u64..6, 0u64..=100);
    (0u64..400_000_000, proptest::collection::vec(holder, 0..4)).prop_map(|(size, holders)| {
        let shares: Vec<_> = holders
            .iter()
            .map(|&(id, share)| (id, size * share / 100))
            .collect();
        file(size, &shares)
    })
}

fn some_node(id: u64) -> impl Strategy<Value = NodeFact> {
    (
        any::<bool>(),
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.8),
    )
        .prop_map(move |(alive, read_only, serves)| {
            let mut fact = node(id);
            fact.alive = alive;
            fact.read_only = read_only;
            if !serves {
                fact.serves.clear();
            }
            fact
        })
}

proptest! {
    #[test]
    fn places_are_allowed_and_ordered_by_what_they_lack(
        files in proptest::collection::vec(some_file(), 1..4),
        nodes in (some_node(1), some_node(2), some_node(3), some_node(4), some_node(5)),
    ) {
        let nodes = [nodes.0, nodes.1, nodes.2, nodes.3, nodes.4];
        let wish = wish(files.iter().collect());
        match place(&wish, &nodes) {
            Ok(placement) => {
                prop_assert!(placement.places.iter().any(|place| place.delay_ms == 0), "somebody at once");
                for place in &placement.places {
                    let fact = nodes.iter().find(|n| n.id == place.node).unwrap();
                    prop_assert!(fact.alive && fact.serves.iter().any(|s| s == "default"));
                    prop_assert_eq!(place.fetch_bytes, fetch_bytes(&wish.files, place.node));
                    prop_assert!(place.fetch_bytes <= THRESHOLD_BYTES);
                    prop_assert!(place.fetch_bytes == 0 || !fact.read_only);
                    for other in &placement.places {
                        prop_assert!(place.fetch_bytes < other.fetch_bytes || place.delay_ms >= other.delay_ms);
                    }
                    if place.fetch_bytes == 0 {
                        prop_assert_eq!(place.delay_ms, 0);
                    }
                }
                // Nobody who may was left out.
                for fact in &nodes {
                    let may = refusal(&wish, fact, fetch_bytes(&wish.files, fact.id)).is_none();
                    prop_assert!(nodes.len() <= PLACES_MAX);
                    prop_assert_eq!(may, placement.places.iter().any(|place| place.node == fact.id));
                }
            }
            Err(NotPlaceable(text)) => {
                for fact in &nodes {
                    prop_assert!(refusal(&wish, fact, fetch_bytes(&wish.files, fact.id)).is_some());
                    prop_assert!(text.contains(&fact.name), "{}", text);
                }
            }
        }
    }

    #[test]
    fn waiting_grows_with_what_is_lacking(a in 0u64..1_000_000_000, b in 0u64..1_000_000_000) {
        prop_assert!(a > b || delay_ms(a) <= delay_ms(b));
        prop_assert!(delay_ms(a) >= a / FETCH_BYTES_PER_MS);
        prop_assert!(delay_ms(a) <= a / FETCH_BYTES_PER_MS + 1);
        prop_assert_eq!(delay_ms(a) == 0, a == 0);
    }
}

#[test]
fn partial_copies_count() {
    let files = [file(100_000_000, &[(1, 100_000_000), (2, 60_000_000)])];
    let placement = place(&wish(files.iter().collect()), &[node(1), node(2), node(3)]).unwrap();
    let lacking: Vec<u64> = placement
        .places
        .iter()
        .map(|place| place.fetch_bytes)
        .collect();
    assert_eq!(lacking, [0, 40_000_000, 100_000_000]);
    assert!(placement.places[1].delay_ms < placement.places[2].delay_ms);
    assert_eq!(placement.why, "node1 has all of 1 file, 100.0 MB");
    assert_eq!(placement.costs[1], ("node2".into(), 40_000_000));
}

#[test]
fn of_many_nodes_each_call_has_a_few_others_and_those_that_have_the_data() {
    let nodes: Vec<NodeFact> = (1..=300).map(node).collect();
    let file = file(50_000_000, &[(77, 50_000_000), (200, 10_000_000)]);
    let mut seen = std::collections::HashSet::new();
    for seed in 0..200 {
        let mut wish = wish(vec![&file]);
        wish.seed = seed;
        let placement = place(&wish, &nodes).unwrap();
        assert_eq!(placement.places.len(), PLACES_MAX);
        assert_eq!(placement.places[0].node, NodeId(77));
        assert_eq!(placement.places[1].node, NodeId(200));
        assert_eq!(placement.costs.len(), COSTS_MAX);
        assert_eq!(
            placement.costs[..2],
            [("node77".into(), 0), ("node200".into(), 40_000_000)]
        );
        seen.extend(placement.places.iter().map(|place| place.node));
    }
    assert_eq!(seen.len(), 300, "all of them get some");
}

#[test]
fn a_call_runs_rather_where_it_was_asked_to() {
    let file = file(50_000_000, &[(1, 50_000_000)]);
    let mut wish = wish(vec![&file]);
    wish.near = vec![NodeId(3)];
    let placement = place(&wish, &[node(1), node(2), node(3)]).unwrap();
    let delays: Vec<_> = placement
        .places
        .iter()
        .map(|place| (place.node.0, place.delay_ms))
        .collect();
    assert_eq!(
        delays,
        [(3, 0), (1, NEAR_MS), (2, NEAR_MS + delay_ms(50_000_000))]
    );
    assert_eq!(placement.why, "rather on node3");
    // Over the threshold not even there, and elsewhere as if nothing had been said.
    wish.threshold_bytes = Some(1_000);
    let placement = place(&wish, &[node(1), node(2), node(3)]).unwrap();
    assert_eq!(placement.places[0].node, NodeId(1));
    assert_eq!(placement.why, "node1 has all of 1 file, 50.0 MB");
    wish.files.clear();
    let placement = place(&wish, &[node(1), node(3)]).unwrap();
    assert_eq!(placement.places[0].node, NodeId(3), "without data, too");
}

#[test]
fn no_data_means_anywhere() {
    let placement = place(&wish(vec![]), &[node(1)]).unwrap();
    assert!(placement.places.is_empty());
}

#[test]
fn a_named_node_is_the_only_place_and_says_why_not() {
    let mut asked = wish(vec![]);
    asked.node = Some("node2");
    let placement = place(&asked, &[node(1), node(2)]).unwrap();
    assert_eq!(
        placement.places,
        [Place {
            node: NodeId(2),
            fetch_bytes: 0,
            delay_ms: 0
        }]
    );
    let mut gone = node(2);
    gone.alive = false;
    let error = place(&asked, &[node(1), gone]).unwrap_err();
    assert_eq!(error.0, "no node may run it: node2: is gone");
    asked.node = Some("node9");
    let error = place(&asked, &[node(1)]).unwrap_err();
    assert_eq!(error.0, "no node may run it: there is no node 'node9'");
}

#[test]
fn queues_interpreters_and_the_threshold_are_reasons() {
    let big = file(300_000_000, &[(1, 300_000_000)]);
    let mut elsewhere = wish(vec![&big]);
    elsewhere.queue = "gpu";
    let mut gpu = node(2);
    gpu.serves.push("gpu".into());
    let error = place(&elsewhere, &[node(1), gpu]).unwrap_err().0;
    assert!(
        error.contains("node1: does not serve the queue 'gpu'"),
        "{error}"
    );
    assert!(
        error.contains("node2: would have to fetch 300.0 MB, over the threshold of 200.0 MB"),
        "{error}"
    );
    let mut snake = wish(vec![]);
    snake.python = Some("conda");
    let error = place(&snake, &[node(1)]).unwrap_err().0;
    assert!(error.contains("has no interpreter 'conda'"), "{error}");
}
