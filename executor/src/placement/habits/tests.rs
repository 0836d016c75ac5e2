use super::super::pattern::tests::texts;
use super::*;
use proptest::prelude::*;

/// A function that opens what `opens` makes of its arguments, called with each of these; what was guessed for each call.
fn run(
    calls: &[Vec<(&str, &str)>],
    opens: impl Fn(&[(&str, &str)]) -> Vec<String>,
) -> (Habits, Vec<Vec<Vec<String>>>) {
    let mut habits = Habits::default();
    let mut guessed = Vec::new();
    for call in calls {
        guessed.push(shown(&habits, call));
        let files: Vec<ByteBuf> = opens(call)
            .into_iter()
            .map(|file| ByteBuf::from(file.into_bytes()))
            .collect();
        habits.observe(&texts(call), &files);
    }
    (habits, guessed)
}

fn shown(habits: &Habits, call: &[(&str, &str)]) -> Vec<Vec<String>> {
    let text = |path: Vec<u8>| String::from_utf8(path).unwrap();
    let guesses = habits.guesses(&texts(call)).into_iter();
    guesses
        .map(|guess| guess.into_keys().map(text).collect())
        .collect()
}

#[test]
fn the_second_call_is_guessed_right() {
    let calls = ["2013-01", "2013-02", "2014-12"].map(|day| vec![("day", day)]);
    let (_, guessed) = run(&calls, |call| {
        vec![format!("flights/{}.csv", call[0].1), "airports.csv".into()]
    });
    assert!(guessed[0].is_empty());
    assert_eq!(guessed[1], [["flights/2013-02.csv"], ["airports.csv"]]);
    assert_eq!(guessed[2], [["flights/2014-12.csv"], ["airports.csv"]]);
}

#[test]
fn what_can_be_read_in_two_ways_is_settled_by_the_next_call() {
    let calls = [("1", "1"), ("1", "2"), ("3", "4")].map(|(m, d)| vec![("m", m), ("d", d)]);
    let (_, guessed) = run(&calls, |call| {
        vec![format!("{}/{}.csv", call[0].1, call[1].1)]
    });
    assert_eq!(
        guessed[1],
        [["1/2.csv", "2/1.csv"]],
        "two may be; who asks looks which is there"
    );
    assert_eq!(guessed[2], [["3/4.csv"]]);
}

#[test]
fn a_function_whose_files_cannot_be_guessed_is_not_guessed_at() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let calls = names.map(|name| vec![("0", name)]);
    let table = |call: &[(&str, &str)]| {
        let at = names.iter().position(|name| *name == call[0].1).unwrap();
        vec![format!("table/{}.csv", (at * 7919) % 101)]
    };
    let (_, guessed) = run(&calls, table);
    assert!(
        !guessed[1].is_empty(),
        "one call may be all there is to know"
    );
    assert!(guessed[2..].iter().all(Vec::is_empty), "{guessed:?}");
}

#[test]
fn a_guess_that_has_become_wrong_is_forgotten() {
    let mut habits = Habits::default();
    let old = |n: usize| vec![ByteBuf::from(format!("old/{n}.csv").into_bytes())];
    let new = |n: usize| vec![ByteBuf::from(format!("new/{n}.csv").into_bytes())];
    let given = |n: usize| texts(&[("0", &n.to_string())]);
    for n in 1..40 {
        habits.observe(&given(n), &old(n));
    }
    for n in 40..80 {
        habits.observe(&given(n), &new(n));
    }
    assert_eq!(shown(&habits, &[("0", "81")]), [["new/81.csv"]]);
}

proptest! {
    /// Whatever is opened with whatever arguments: bounded, and never a panic.
    #[test]
    fn memory_is_bounded(
        calls in proptest::collection::vec(
            (proptest::collection::vec("[a-b0-1/-]{0,6}", 0..4), proptest::collection::vec("[a-b0-1/-]{1,12}", 1..30)),
            1..20,
        ),
    ) {
        let mut habits = Habits::default();
        for (given, files) in calls {
            let pairs: Vec<(String, ByteBuf)> = given
                .into_iter()
                .enumerate()
                .map(|(index, text)| (index.to_string(), ByteBuf::from(text.into_bytes())))
                .collect();
            let files: Vec<ByteBuf> = files.into_iter().map(|file| ByteBuf::from(file.into_bytes())).collect();
            habits.observe(&pairs, &files);
            prop_assert!(habits.habits.len() <= HABITS_MAX);
            prop_assert!(habits.habits.iter().all(|habit| habit.patterns.len() <= READINGS_MAX));
            prop_assert!(habits.guesses(&pairs).len() <= HABITS_MAX);
        }
    }

    /// A function that makes one path of two numbers in some way is guessed right once two of its calls have differed in both.
    #[test]
    fn a_regular_function_is_learned(
        pairs in proptest::collection::vec((0u32..30, 0u32..30), 3..12),
        width in 0usize..4,
    ) {
        let write = |a: u32, b: u32| format!("runs/{a:0width$}/x{b}.h5");
        let mut habits = Habits::default();
        for (a, b) in &pairs {
            let given = texts(&[("a", &a.to_string()), ("b", &b.to_string())]);
            habits.observe(&given, &[ByteBuf::from(write(*a, *b).into_bytes())]);
        }
        let (a, b) = (1234, 567);
        let guesses = habits.guesses(&texts(&[("a", &a.to_string()), ("b", &b.to_string())]));
        let right = write(a, b).into_bytes();
        prop_assert!(guesses.iter().any(|guess| guess.contains_key(&right)), "{:?}", guesses);
        let told_apart = pairs.iter().any(|(a, b)| a != b && *a > 9 && *b > 9) && pairs.iter().any(|(a, b)| *a < 10 && a != b);
        if told_apart {
            prop_assert!(guesses.iter().all(|guess| guess.len() <= 2), "{:?}", guesses);
        }
    }
}
