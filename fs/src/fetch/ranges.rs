//! Sorted, disjoint byte ranges: the small arithmetic that the plan and the backing share.
//! Every list that goes in is sorted and disjoint, and so is every list that comes out.
use ks_transport::blocks::GROUP_BYTES;
use std::ops::Range;

/// A list of sorted, disjoint, non-empty ranges.
pub type Ranges = Vec<Range<u64>>;

/// Bytes in all of them together.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether two ranges have a byte in common.
pub fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Whether any of `ranges` has a byte in common with `range`.
pub fn any_overlap(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    ranges.iter().any(|each| overlap(each, range))
}

/// Widens a range to whole groups, cut at the content's size.
pub fn to_groups(range: &Range<u64>, size: u64) -> Range<u64> {
    let start = range.start - range.start % GROUP_BYTES;
    let end = range.end.div_ceil(GROUP_BYTES).saturating_mul(GROUP_BYTES);
    start.min(size)..end.min(size)
}

/// What of `ranges` lies inside `range`.
pub fn clip(ranges: &[Range<u64>], range: &Range<u64>) -> Ranges {
    ranges
        .iter()
        .map(|each| each.start.max(range.start)..each.end.min(range.end))
        .filter(|each| each.start < each.end)
        .collect()
}

/// Takes `gone` out of `ranges`.
pub fn subtract(ranges: &mut Ranges, gone: &Range<u64>) {
    if !any_overlap(ranges, gone) {
        return;
    }
    let mut left = Vec::with_capacity(ranges.len() + 1);
    for range in ranges.drain(..) {
        if !overlap(&range, gone) {
            left.push(range);
            continue;
        }
        if range.start < gone.start {
            left.push(range.start..gone.start);
        }
        if gone.end < range.end {
            left.push(gone.end..range.end);
        }
    }
    *ranges = left;
}

/// The union of any ranges, sorted and joined.
pub fn union(mut ranges: Ranges) -> Ranges {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Ranges = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The bytes that both lists have.
pub fn intersect(one: &[Range<u64>], other: &[Range<u64>]) -> Ranges {
    one.iter().flat_map(|range| clip(other, range)).collect()
}

/// The first `bytes` of `ranges` (at most `count` of them); cuts fall between groups.
pub fn first(ranges: &[Range<u64>], bytes: u64, count: usize) -> Ranges {
    let mut left = bytes.max(GROUP_BYTES);
    let mut taken = Vec::new();
    for range in ranges.iter().take(count) {
        let len = range.end - range.start;
        if len <= left {
            taken.push(range.clone());
            left -= len;
        } else {
            let end = (range.start + left) / GROUP_BYTES * GROUP_BYTES;
            if end > range.start {
                taken.push(range.start..end);
            }
            left = 0;
        }
        if left == 0 {
            break;
        }
    }
    taken
}

/// The last `bytes` of `ranges`; the cut falls between groups.
pub fn last(ranges: &[Range<u64>], bytes: u64) -> Ranges {
    let skip = total(ranges).saturating_sub(bytes);
    let mut rest: Ranges = ranges.to_vec();
    for range in first(ranges, skip, usize::MAX) {
        if skip >= GROUP_BYTES {
            subtract(&mut rest, &range);
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const G: u64 = GROUP_BYTES;

    fn bits(ranges: &[Range<u64>]) -> Vec<bool> {
        (0..64)
            .map(|g| ranges.iter().any(|r| r.contains(&(g * G))))
            .collect()
    }

    fn groups() -> impl Strategy<Value = Ranges> {
        prop::collection::vec((0u64..60, 1u64..6), 0..8).prop_map(|list| {
            union(
                list.iter()
                    .map(|(s, l)| s * G..(s + l).min(64) * G)
                    .collect(),
            )
        })
    }

    proptest! {
        #[test]
        fn arithmetic_is_that_of_sets(a in groups(), b in groups()) {
            let both: Vec<bool> = bits(&a).iter().zip(bits(&b)).map(|(x, y)| *x && y).collect();
            prop_assert_eq!(bits(&intersect(&a, &b)), both);
            let mut left = a.clone();
            for range in &b {
                subtract(&mut left, range);
            }
            let without: Vec<bool> = bits(&a).iter().zip(bits(&b)).map(|(x, y)| *x && !y).collect();
            prop_assert_eq!(bits(&left), without);
        }

        #[test]
        fn first_and_last_cut_between_groups(a in groups(), bytes in 1u64..(70 * G)) {
            let head = first(&a, bytes, usize::MAX);
            prop_assert!(total(&head) <= bytes.max(G));
            prop_assert!(a.is_empty() || !head.is_empty());
            prop_assert!(head.iter().all(|r| r.start % G == 0 && r.end % G == 0));
            let tail = last(&a, bytes);
            prop_assert!(total(&tail) >= bytes.min(total(&a)));
            prop_assert!(total(&tail) < bytes.min(total(&a)) + G);
        }
    }
}
