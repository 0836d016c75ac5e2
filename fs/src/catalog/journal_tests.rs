use super::*;
use proptest::prelude::*;

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(What::Record),
        Just(What::Gone),
        (1u64..4, "[ab]", any::<bool>()).prop_map(|(dir, name, there)| What::Link(
            dir,
            name.into_bytes(),
            there
        )),
        any::<i64>().prop_map(What::Time),
    ]
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let one = (1u64..200, what()).prop_map(|(ino, what)| (ino, what));
    proptest::collection::vec(one, 0..200).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered
            .map(|(at, (ino, what))| Entry {
                ino,
                stand: Stand(1_700_000_000_000, at as u64, 0),
                what,
            })
            .collect()
    })
}

fn all(journal: &Journal) -> BTreeMap<Ino, Folded> {
    (0..PARTS)
        .flat_map(|part| journal.read(part).unwrap())
        .collect()
}

proptest! {
    /// In whatever order they were written, and folded or not, the same is left; and no damage makes more than itself go.
    #[test]
    fn the_latest_counts(entries in entries(), damage in any::<Option<prop::sample::Index>>()) {
        let mut expected: BTreeMap<Ino, Folded> = BTreeMap::new();
        for entry in &entries {
            expected.entry(entry.ino).or_default().add(entry.clone());
        }
        let mut backwards: BTreeMap<Ino, Folded> = BTreeMap::new();
        for entry in entries.iter().rev() {
            backwards.entry(entry.ino).or_default().add(entry.clone());
        }
        prop_assert_eq!(&backwards, &expected);
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| write_entry(&mut bytes, entry));
        prop_assert_eq!(&fold(&bytes), &expected);
        let mut once = Vec::new();
        for (ino, of) in &expected {
            of.entries(*ino).iter().for_each(|entry| write_entry(&mut once, entry));
        }
        for (ino, of) in fold(&once) {
            prop_assert_eq!(&of.record, &expected[&ino].record);
        }
        if let (Some(at), false) = (damage, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] ^= 0x55;
            let left: usize = fold(&bytes).values().map(|of| of.entries(0).len()).sum();
            let whole: usize = entries.len();
            prop_assert!(left <= whole);
        }
    }
}

#[test]
fn what_is_appended_is_read_and_the_journal_does_not_grow_with_the_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.cluster(), None);
    journal.belongs_to("one").unwrap();
    let now = u64::try_from(crate::catalog::now() / 1_000_000).unwrap();
    let record = |round: u64| What::Record(format!("{round:1000}").into_bytes());
    for round in 0..20_000u64 {
        let entry = Entry {
            ino: 64 * (round % 10),
            stand: Stand(now, round, 0),
            what: record(round),
        };
        journal.append(&[entry]).unwrap();
    }
    let bytes = std::fs::metadata(path.join("00")).unwrap().len();
    assert!(bytes < 2 * FOLD_AT_BYTES, "{bytes} bytes for ten records");
    assert!(journal.has(EventId(now, 19_999)) && !journal.has(EventId(now, 20_000)));
    drop(journal);
    // A torn end: what was written before and after it counts.
    let mut file = File::options().append(true).open(path.join("00")).unwrap();
    file.write_all(&[9, 0, 0, 0, 1, 2]).unwrap();
    let again = Journal::open(&path).unwrap();
    let later = Entry {
        ino: 640,
        stand: Stand(now, 20_001, 0),
        what: What::Gone,
    };
    again.append(&[later]).unwrap();
    let read = all(&again);
    assert_eq!(read.len(), 11);
    let expected = Stand(now, 19_993, 0);
    let last = match record(19_993) {
        What::Record(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(read[&(64 * 3)].record, Some((expected, Some(last))));
    assert_eq!(read[&640].is_gone(), Some(Stand(now, 20_001, 0)));
    // Another cluster's tree: nothing of this one is read, and nothing is thrown away.
    again.belongs_to("one").unwrap();
    assert_eq!(all(&again).len(), 11);
    again.belongs_to("two").unwrap();
    assert_eq!(again.cluster().as_deref(), Some("two"));
    assert!(all(&again).is_empty());
    assert!(directory.path().join("journal.one/00").exists());
}

#[test]
fn what_has_been_gone_for_long_is_forgotten() {
    let gone = |ms: u64| Folded {
        record: Some((Stand(ms, 0, 0), None)),
        ..Folded::default()
    };
    let mut folded = BTreeMap::from([(1, gone(5)), (2, gone(GONE_KEPT_MS))]);
    forget_gone(&mut folded, GONE_KEPT_MS + 6);
    assert_eq!(folded.keys().copied().collect::<Vec<_>>(), [2]);
}

proptest! {
    #[test]
    fn the_text_of_a_stand_is_in_its_order(a in (0u64..1 << 48, 0u64..1 << 32, 0u64..1 << 32), b in (0u64..1 << 48, 0u64..1 << 32, 0u64..1 << 32)) {
        let (a, b) = (Stand(a.0, a.1, a.2), Stand(b.0, b.1, b.2));
        prop_assert_eq!(a.cmp(&b), a.to_text().cmp(&b.to_text()));
        prop_assert_eq!(Stand::from_text(&a.to_text()), Some(a));
        prop_assert!(a.to_text().as_str() < "~");
    }
}
