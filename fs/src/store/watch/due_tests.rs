use super::*;
use proptest::prelude::*;

fn path(name: &str) -> TreePath {
    TreePath::new(name.as_bytes()).unwrap()
}

/// Lets time pass until `path` is taken; `None`: nothing waits.
fn next(due: &mut Due, now: &mut u64) -> Option<Vec<Task>> {
    *now = due.next_ms()?.max(*now);
    Some(due.take(*now, usize::MAX))
}

#[test]
fn what_stays_different_is_acted_upon_once() {
    let (mut due, mut now) = (Due::default(), 1_000);
    due.event(path("a"), Hint::Made, now);
    due.event(path("a"), Hint::Settled, now);
    assert_eq!(due.take(now, 9), []);
    let first = next(&mut due, &mut now).unwrap();
    assert_eq!((now, first.len()), (1_000 + SETTLE_MS, 1));
    assert!(!due.looked(&path("a"), Look::Differs(7), now));
    assert_eq!(next(&mut due, &mut now).unwrap().len(), 1);
    assert!(due.looked(&path("a"), Look::Differs(7), now));
    assert_eq!(now, 1_000 + SETTLE_MS + CONFIRM_MS);
    due.done(&path("a"), now);
    assert_eq!(due.next_ms(), None);
}

#[test]
fn a_file_that_is_not_closed_is_given_time_and_what_changes_is_not_acted_upon() {
    let (mut due, mut now) = (Due::default(), 0);
    due.event(path("a"), Hint::Made, now);
    for size in 0..10 {
        assert_eq!(next(&mut due, &mut now).unwrap().len(), 1);
        assert!(!due.looked(&path("a"), Look::Differs(size), now));
    }
    let before = now;
    next(&mut due, &mut now).unwrap();
    assert!(now - before <= CONFIRM_LONGEST_MS);
    assert!(due.looked(&path("a"), Look::Differs(9), now));
}

#[test]
fn looks_come_in_the_order_of_the_last_events() {
    let mut due = Due::default();
    for name in ["b", "a", "c", "b"] {
        due.event(path(name), Hint::Gone, 5);
    }
    let taken = due.take(5 + SETTLE_MS, 9);
    let names: Vec<&[u8]> = taken.iter().map(|task| task.path.as_bytes()).collect();
    assert_eq!(names, [b"a", b"c", b"b"]);
    assert!(taken.iter().all(|task| task.was_removed && !task.was_put));
}

#[test]
fn too_much_is_told_and_not_kept() {
    let mut due = Due::default();
    for number in 0..PATHS_MAX + 10 {
        due.event(path(&number.to_string()), Hint::Settled, 0);
    }
    assert_eq!(due.paths.len(), PATHS_MAX);
    assert!(due.has_overflowed() && !due.has_overflowed());
}

#[test]
fn what_waits_below_a_moved_directory_goes_along_and_knows_where_it_was_first() {
    let mut due = Due::default();
    due.event(path("a/x"), Hint::Gone, 0);
    due.event(path("a/y/z"), Hint::Made, 0);
    due.event(path("ab"), Hint::Settled, 0);
    due.event(path("b"), Hint::MovedFrom(path("a")), 1);
    assert!(due.has_below(&path("b")) && !due.has_below(&path("a")));
    assert!(due.is_awaited_elsewhere(&path("a")));
    due.event(path("c"), Hint::MovedFrom(path("b")), 2);
    assert!(due.is_news_at_or_above(&path("c/never/heard")));
    assert!(!due.is_news_at_or_above(&path("d")) && !due.is_news_at_or_above(&path("ab")));
    let taken = due.take(SETTLE_LONGEST_MS, 9);
    let find = |name: &str| taken.iter().find(|task| task.path == path(name));
    assert!(find("c/x").unwrap().was_removed && find("c/y/z").is_some() && find("ab").is_some());
    assert_eq!(find("c").unwrap().moved_from, Some(path("a")));
    assert!(find("a/x").is_none() && find("b/x").is_none());
}

#[test]
fn what_waits_to_be_moved_is_known_until_it_is_done() {
    let (mut due, now) = (Due::default(), 0);
    due.event(path("b"), Hint::MovedFrom(path("a")), now);
    due.event(path("c"), Hint::MovedFrom(path("b")), now);
    due.event(path("b"), Hint::MovedFrom(path("x/y")), now);
    let below = |due: &Due, at: &str| due.is_below_moved(&path(at));
    let (from, to) = (true, true);
    assert_eq!(below(&due, "a/1/2"), BelowMoved { from, to: false });
    assert_eq!(below(&due, "x/y/1"), BelowMoved { from, to: false });
    assert_eq!(below(&due, "c/1"), BelowMoved { from: false, to });
    assert_eq!(below(&due, "b"), BelowMoved::default());
    assert_eq!(below(&due, "x/z"), BelowMoved::default());
    let taken = due.take(SETTLE_LONGEST_MS, 9);
    for task in &taken {
        due.done(&task.path, SETTLE_LONGEST_MS);
    }
    assert!(due.moved_to.is_empty() && due.moved_from.is_empty() && due.paths.is_empty());
}

#[test]
fn what_the_daemon_takes_itself_is_not_looked_at_and_undoes_what_was_seen() {
    let (mut due, mut now) = (Due::default(), 0);
    due.event(path("a"), Hint::TakenByUs, now);
    assert_eq!(due.next_ms(), None);
    due.event(path("a"), Hint::Made, now);
    next(&mut due, &mut now).unwrap();
    assert!(!due.looked(&path("a"), Look::Differs(7), now));
    due.event(path("a"), Hint::TakenByUs, now);
    let taken = next(&mut due, &mut now).unwrap();
    assert!(!taken[0].was_removed && !due.looked(&path("a"), Look::Differs(7), now));
}

#[derive(Clone, Debug)]
enum Step {
    Event(u8, u8),
    Pass(u64),
    Change(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4u8, 0..3u8).prop_map(|(path, hint)| Step::Event(path, hint)),
        3 => (0..600u64).prop_map(Step::Pass),
        2 => (0..4u8).prop_map(Step::Change),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    /// Against a world of four files: what is acted upon stood unchanged, and without an event, for as long as is promised; and
    /// when the world rests all that differed has been acted upon, and nothing waits.
    #[test]
    fn only_what_rests_is_acted_upon_and_nothing_is_forgotten(steps in steps()) {
        let mut due = Due::default();
        let mut now = 0u64;
        // What stands there, since when, and what the tree has.
        let mut world = [(0u64, 0u64, 0u64); 4];
        let mut last_event = [0u64; 4];
        let run = |due: &mut Due, until: u64, now: &mut u64, world: &mut [(u64, u64, u64); 4], last_event: &[u64; 4]| {
            while due.next_ms().is_some_and(|at| at <= until) {
                for task in next(due, now).unwrap() {
                    let number = task.path.as_bytes()[0] as usize - b'0' as usize;
                    let (stands, since, tree) = &mut world[number];
                    let look = if stands == tree { Look::Agrees } else { Look::Differs(*stands) };
                    if due.looked(&task.path, look, *now) {
                        assert!(*now - *since >= CONFIRM_MS && *now - last_event[number] >= CONFIRM_MS);
                        *tree = *stands;
                        due.done(&task.path, *now);
                    }
                }
            }
            *now = until.max(*now);
        };
        let mut fresh = 1;
        for step in steps {
            match step {
                Step::Event(file, hint) => {
                    let hint = [Hint::Made, Hint::Settled, Hint::Gone][hint as usize].clone();
                    last_event[file as usize] = now;
                    due.event(path(&file.to_string()), hint, now);
                }
                // A change is followed by its event.
                Step::Change(file) => {
                    let one = &mut world[file as usize];
                    (one.0, one.1) = (fresh, now);
                    fresh += 1;
                    last_event[file as usize] = now;
                    due.event(path(&file.to_string()), Hint::Settled, now);
                }
                Step::Pass(ms) => {
                    let until = now + ms;
                    run(&mut due, until, &mut now, &mut world, &last_event);
                }
            }
        }
        let until = now + SETTLE_LONGEST_MS + 2 * CONFIRM_LONGEST_MS;
        run(&mut due, until, &mut now, &mut world, &last_event);
        prop_assert!(world.iter().all(|(stands, _, tree)| stands == tree));
        prop_assert_eq!(due.next_ms(), None);
        prop_assert!(due.paths.is_empty());
    }

    /// An event that comes during a look is looked at again, whatever the look showed.
    #[test]
    fn an_event_during_a_look_counts(agrees: bool, what: u64) {
        let mut due = Due::default();
        due.event(path("a"), Hint::Made, 0);
        prop_assert_eq!(due.take(SETTLE_MS, 9).len(), 1);
        due.event(path("a"), Hint::Gone, SETTLE_MS);
        let look = if agrees { Look::Agrees } else { Look::Differs(what) };
        prop_assert!(!due.looked(&path("a"), look, SETTLE_MS));
        let again = due.take(2 * SETTLE_MS, 9);
        prop_assert!(again.len() == 1 && again[0].was_removed);
    }
}

#[test]
fn what_was_looked_at_in_vain_is_looked_at_soon_when_there_is_hope() {
    let mut due = Due::default();
    due.event(path("a"), Hint::Settled, 0);
    let mut now_ms = SETTLE_MS;
    for _ in 0..6 {
        assert_eq!(due.take(now_ms, 9).len(), 1);
        due.looked(&path("a"), Look::Failed, now_ms);
        now_ms = due.next_ms().unwrap();
    }
    let early = now_ms - 5 * RETRY_MS;
    assert!(due.take(early, 9).is_empty());
    assert!(due.hurry(early) && !due.hurry(early));
    assert_eq!(due.next_ms(), Some(early + RETRY_MS));
    assert_eq!(due.take(early + RETRY_MS, 9).len(), 1);
    due.looked(&path("a"), Look::Failed, early + RETRY_MS);
    assert_eq!(due.next_ms(), Some(early + 2 * RETRY_MS));
}
