use super::*;
use proptest::prelude::*;
use serde_bytes::ByteBuf;

pub(in crate::placement) fn texts(pairs: &[(&str, &str)]) -> Vec<(String, ByteBuf)> {
    let text =
        |(name, text): &(&str, &str)| ((*name).to_owned(), ByteBuf::from(text.as_bytes().to_vec()));
    pairs.iter().map(text).collect()
}

/// What is made of `after` by the ways to read `path` as made of `before`.
fn made(path: &str, before: &[(&str, &str)], after: &[(&str, &str)]) -> Vec<String> {
    let patterns = readings(path.as_bytes(), &texts(before));
    let mut made: Vec<String> = patterns
        .iter()
        .filter_map(|pattern| pattern.make(&texts(after)))
        .map(|path| String::from_utf8(path).unwrap())
        .collect();
    made.sort();
    made.dedup();
    made
}

#[test]
fn an_argument_stands_in_the_path() {
    let one = |path, before, after| made(path, &[("day", before)], &[("day", after)]);
    assert_eq!(
        one("flights/2013-01.csv", "2013-01", "2014-12"),
        ["flights/2014-12.csv"]
    );
    assert_eq!(
        one("a/AAPL/AAPL.csv", "AAPL", "IBM").len(),
        3,
        "each may be there by chance"
    );
    assert_eq!(
        one("2013/01/05.csv", "2013-01-05", "2014-12-31"),
        ["2014/12/31.csv"]
    );
    assert_eq!(
        one("20130105.h5", "2013-01-05", "2014-12-31"),
        ["20141231.h5"]
    );
    assert_eq!(
        one("20130105.h5", "2013-01-05 00:00:00", "2014-12-31 01:00:00"),
        ["20141231.h5"]
    );
    assert_eq!(one("x/index.h5", "2013-01", "2014-12"), ["x/index.h5"]);
}

#[test]
fn numbers_are_filled_up_with_zeros_where_they_were() {
    let one = |path, before, after| made(path, &[("0", before)], &[("0", after)]);
    assert_eq!(one("part-0007.h5", "7", "12"), ["part-0012.h5"]);
    assert_eq!(one("part-7.h5", "7", "12"), ["part-12.h5"]);
    assert_eq!(one("part-07.h5", "07", "12"), ["part-12.h5"]);
    assert_eq!(
        one("part-12.h5", "12", "7"),
        ["part-07.h5", "part-7.h5"],
        "by chance or by rule"
    );
    assert_eq!(one("part-12.h5", "12", "13"), ["part-13.h5"]);
    assert_eq!(
        one("part-123.h5", "12", "13"),
        ["part-123.h5"],
        "another number"
    );
    assert_eq!(one("day1.csv", "1", "2"), ["day2.csv"]);
}

#[test]
fn a_text_inside_of_a_longer_word_is_there_by_chance() {
    assert_eq!(
        made("datasets/x", &[("0", "data")], &[("0", "more")]),
        ["datasets/x"]
    );
    assert_eq!(
        made("data_sets/x", &[("0", "data")], &[("0", "more")]),
        ["more_sets/x"]
    );
}

#[test]
fn several_arguments_stand_each_in_its_place() {
    let before = [("0", "2013"), ("month", "1")];
    let after = [("0", "2014"), ("month", "12")];
    assert_eq!(made("f/2013/01.csv", &before, &after), ["f/2014/12.csv"]);
    let same = [("month", "1"), ("day", "1")];
    let other = [("month", "1"), ("day", "2")];
    assert_eq!(
        made("1/1.csv", &same, &other),
        ["1/2.csv", "2/1.csv"],
        "either way round"
    );
    let lacking = [("0", "2014")];
    assert_eq!(
        made("f/2013/01.csv", &before, &lacking),
        Vec::<String>::new()
    );
}

#[test]
fn patterns_are_shown_with_their_arguments() {
    let shown = |path: &str, pairs| readings(path.as_bytes(), &texts(pairs))[0].to_string();
    assert_eq!(shown("f/2013-01.csv", &[("day", "2013-01")]), "f/{day}.csv");
    assert_eq!(
        shown("f/2013/01.csv", &[("day", "2013-01")]),
        "f/{day:0}/{day:1}.csv"
    );
}

#[test]
fn what_can_be_read_in_too_many_ways_says_nothing() {
    let path = ["7"; 12].join("/");
    assert!(readings(path.as_bytes(), &texts(&[("0", "7")])).is_empty());
    let long = vec![b'x'; PATH_BYTES_MAX + 1];
    assert!(readings(&long, &texts(&[("0", "7")])).is_empty());
}

fn some_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-c]{1,4}",
        "[0-9]{1,4}",
        "20[0-2][0-9]-[01][0-9](-[0-3][0-9])?",
        "[a-b1-2/._-]{0,8}",
    ]
}

proptest! {
    #[test]
    fn every_reading_makes_the_path_it_was_read_from(
        path in "([a-c]{1,3}|[0-9]{1,4}|[/._-]){0,12}",
        given in proptest::collection::vec(some_text(), 0..4),
    ) {
        let pairs: Vec<(String, ByteBuf)> = given
            .iter()
            .enumerate()
            .map(|(index, text)| (index.to_string(), ByteBuf::from(text.clone().into_bytes())))
            .collect();
        let patterns = readings(path.as_bytes(), &pairs);
        prop_assert!(patterns.len() <= READINGS_MAX);
        for pattern in patterns {
            prop_assert_eq!(pattern.make(&pairs), Some(path.clone().into_bytes()), "{}", pattern);
        }
    }

    /// Whatever a program writes with its arguments between fixed words is found again, if perhaps beside other readings.
    #[test]
    fn what_a_program_makes_of_its_arguments_is_among_the_readings(
        year in 1990u32..2030, month in 1u32..13, name in "[a-d]{2,5}",
        year_after in 1990u32..2030, month_after in 1u32..13, name_after in "[a-d]{2,5}",
        form in 0usize..4,
    ) {
        let write = |year: u32, month: u32, name: &str| match form {
            0 => format!("x/{name}/{year}-{month:02}.csv"),
            1 => format!("{year}/{month}/{name}.h5"),
            2 => format!("{name}_{month:03}_of_{year}"),
            _ => format!("z/{name}.{year}"),
        };
        let given = |year: u32, month: u32, name: &str| {
            texts(&[("0", &year.to_string()), ("month", &month.to_string()), ("name", name)])
        };
        let patterns = readings(write(year, month, &name).as_bytes(), &given(year, month, &name));
        let after = given(year_after, month_after, &name_after);
        let expected = write(year_after, month_after, &name_after).into_bytes();
        prop_assert!(patterns.iter().any(|pattern| pattern.make(&after).as_ref() == Some(&expected)));
    }
}
