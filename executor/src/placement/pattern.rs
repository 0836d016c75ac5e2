//! Paths that are made of a call's arguments: `flights/2013-01.csv` and `day="2013-01"` give `flights/{day}.csv`.
//!
//! Pure. What always holds: a pattern that was read out of a path makes that very path of the same arguments; a path that can be
//! read in too many ways gives no pattern at all. Whether a path that a pattern makes is there, its user finds out.
use std::collections::HashSet;
use std::fmt;

/// Ways to read one path; where there are more, it says nothing.
pub const READINGS_MAX: usize = 16;
/// Longest path that is looked at, bytes.
pub const PATH_BYTES_MAX: usize = 1_024;
/// Places of one path where something of an argument may stand; where there are more, it says nothing.
const REGIONS_MAX: usize = 6;
/// Parts of one argument's text that are looked for.
const TOKENS_MAX: usize = 8;

/// A call's short arguments as texts: the position ("0") or the keyword of each, and what `str()` makes of it.
pub type Texts = [(String, serde_bytes::ByteBuf)];

/// What of an argument's text stands in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    /// All of it.
    Whole,
    /// Its n-th run of letters and digits: the month of "2013-01".
    Token(usize),
    /// Its first runs of digits, joined: "20130105" of "2013-01-05".
    Digits,
}

/// A part of one argument.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Slot {
    argument: String,
    part: Part,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Piece {
    /// These bytes.
    Text(Vec<u8>),
    /// The slot's text; a number is filled up with zeros to `width` digits.
    Slot { slot: Slot, width: usize },
}

/// How a path is made of arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Vec<Piece>);

impl Pattern {
    /// The path for these arguments; `None`: they lack what it is made of.
    pub fn make(&self, texts: &Texts) -> Option<Vec<u8>> {
        let mut path = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => path.extend_from_slice(text),
                Piece::Slot { slot, width } => {
                    let text = slot.text(texts)?;
                    if *width > 0 && is_number(&text) {
                        path.resize(path.len() + width.saturating_sub(text.len()), b'0');
                    }
                    path.extend_from_slice(&text);
                }
            }
        }
        Some(path)
    }

    /// Whether it makes the same path of whatever arguments.
    pub fn is_constant(&self) -> bool {
        !self
            .0
            .iter()
            .any(|piece| matches!(piece, Piece::Slot { .. }))
    }

    /// About what it takes in memory.
    pub fn size_bytes(&self) -> usize {
        let size = |piece: &Piece| match piece {
            Piece::Text(text) => text.len(),
            Piece::Slot { slot, .. } => slot.argument.len(),
        };
        self.0.iter().map(|piece| size(piece) + 64).sum()
    }
}

/// "flights/{day}.csv".
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(&String::from_utf8_lossy(text))?,
                Piece::Slot { slot, .. } => match slot.part {
                    Part::Whole => write!(f, "{{{}}}", slot.argument)?,
                    Part::Token(index) => write!(f, "{{{}:{index}}}", slot.argument)?,
                    Part::Digits => write!(f, "{{{}:digits}}", slot.argument)?,
                },
            }
        }
        Ok(())
    }
}

impl Slot {
    fn text(&self, texts: &Texts) -> Option<Vec<u8>> {
        let (_, text) = texts.iter().find(|(name, _)| *name == self.argument)?;
        match self.part {
            Part::Whole => Some(text.to_vec()),
            Part::Token(index) => tokens(text).get(index).map(|token| token.to_vec()),
            Part::Digits => digits(text),
        }
    }
}

/// The ways to read a path as made of these arguments. None: too many, or it is too long. A path in which no argument stands is
/// read as itself.
pub fn readings(path: &[u8], texts: &Texts) -> Vec<Pattern> {
    if path.len() > PATH_BYTES_MAX {
        return Vec::new();
    }
    let regions = regions(path, texts);
    if regions.len() > REGIONS_MAX {
        return Vec::new();
    }
    let mut choices: Vec<Vec<Option<&Filling>>> = vec![Vec::new()];
    for region in &regions {
        let ways = choices.len() * (region.fillings.len() + 1);
        if ways > 64 * READINGS_MAX {
            return Vec::new();
        }
        let fillings = || std::iter::once(None).chain(region.fillings.iter().map(Some));
        choices = choices
            .iter()
            .flat_map(|chosen| fillings().map(|next| [&chosen[..], &[next]].concat()))
            .collect();
    }
    // As much of the arguments as possible is taken to be meant, nothing to be there by chance.
    let used = |chosen: &Vec<Option<&Filling>>| {
        let slots: HashSet<&Slot> = chosen.iter().flatten().map(|(slot, _)| slot).collect();
        slots.len()
    };
    let most = choices.iter().map(used).max().unwrap_or(0);
    let mut patterns: Vec<Pattern> = choices
        .iter()
        .filter(|chosen| used(chosen) == most)
        .map(|chosen| pattern(path, &regions, chosen))
        .collect();
    patterns.sort();
    patterns.dedup();
    match patterns.len() {
        0..=READINGS_MAX => patterns,
        _ => Vec::new(),
    }
}

/// A slot, and to how many digits it is filled up.
type Filling = (Slot, usize);

/// A stretch of a path where something of an argument stands.
struct Region {
    start: usize,
    end: usize,
    fillings: Vec<Filling>,
}

fn pattern(path: &[u8], regions: &[Region], chosen: &[Option<&Filling>]) -> Pattern {
    let mut pieces = Vec::new();
    let mut at = 0;
    for (region, filling) in regions.iter().zip(chosen) {
        let Some((slot, width)) = filling else {
            continue;
        };
        if region.start > at {
            pieces.push(Piece::Text(path[at..region.start].to_vec()));
        }
        let (slot, width) = (slot.clone(), *width);
        pieces.push(Piece::Slot { slot, width });
        at = region.end;
    }
    if at < path.len() {
        pieces.push(Piece::Text(path[at..].to_vec()));
    }
    Pattern(pieces)
}

/// Where the arguments stand, from left to right. Where two overlap, the longer one is meant.
fn regions(path: &[u8], texts: &Texts) -> Vec<Region> {
    let mut found: Vec<(usize, usize, Filling)> = Vec::new();
    for (slot, text) in slots(texts) {
        for (start, end, width) in places_of(&text, path) {
            found.push((start, end, (slot.clone(), width)));
        }
    }
    found.sort_by(|a, b| (b.1 - b.0, &a.0, &a.2).cmp(&(a.1 - a.0, &b.0, &b.2)));
    let mut regions: Vec<Region> = Vec::new();
    for (start, end, filling) in found {
        match regions
            .iter_mut()
            .find(|known| start < known.end && known.start < end)
        {
            Some(same) if (same.start, same.end) == (start, end) => same.fillings.push(filling),
            Some(_) => {}
            None => regions.push(Region {
                start,
                end,
                fillings: vec![filling],
            }),
        }
    }
    regions.sort_by_key(|region| region.start);
    regions
}

fn slots(texts: &Texts) -> Vec<(Slot, Vec<u8>)> {
    let mut slots = Vec::new();
    for (argument, text) in texts {
        let mut add = |part, text: &[u8]| {
            let argument = argument.clone();
            slots.push((Slot { argument, part }, text.to_vec()));
        };
        if text.is_empty() {
            continue;
        }
        add(Part::Whole, text);
        let tokens = tokens(text);
        if tokens.len() > 1 {
            for (index, token) in tokens.iter().enumerate() {
                add(Part::Token(index), token);
            }
        }
        if let Some(digits) = digits(text) {
            add(Part::Digits, &digits);
        }
    }
    slots
}

fn tokens(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| !byte.is_ascii_alphanumeric())
        .filter(|token| !token.is_empty())
        .take(TOKENS_MAX)
        .collect()
}

/// Of a text that begins like a date: its first (up to three) numbers, joined.
fn digits(text: &[u8]) -> Option<Vec<u8>> {
    let tokens = tokens(text);
    let numbers: Vec<&[u8]> = tokens
        .iter()
        .take(3)
        .copied()
        .take_while(|token| is_number(token))
        .collect();
    (numbers.len() > 1 && text[0].is_ascii_digit()).then(|| numbers.concat())
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// Where a text stands in a path by itself, not inside of a longer word or number: start, end, and to how many digits it is filled up.
fn places_of(text: &[u8], path: &[u8]) -> Vec<(usize, usize, usize)> {
    if is_number(text) {
        return places_of_number(text, path);
    }
    let joins = |a: Option<&u8>, b: Option<&u8>| match (a, b) {
        (Some(a), Some(b)) => {
            (a.is_ascii_digit() && b.is_ascii_digit())
                || (a.is_ascii_alphabetic() && b.is_ascii_alphabetic())
        }
        _ => false,
    };
    let stands = |start: &usize| {
        let end = start + text.len();
        let before = start.checked_sub(1).and_then(|at| path.get(at));
        path[*start..].starts_with(text)
            && !joins(before, text.first())
            && !joins(text.last(), path.get(end))
    };
    (0..path.len())
        .filter(stands)
        .map(|start| (start, start + text.len(), 0))
        .collect()
}

/// A number stands where a whole run of digits is that number, zeros before it or not.
fn places_of_number(text: &[u8], path: &[u8]) -> Vec<(usize, usize, usize)> {
    let mut places = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let length = path[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let run = &path[at..at + length];
        if run == text {
            places.push((at, at + length, 0));
            if length > 1 && text[0] != b'0' {
                // "11" may be two digits by chance or by rule.
                places.push((at, at + length, length));
            }
        } else if run.len() > text.len()
            && run.ends_with(text)
            && run[..run.len() - text.len()]
                .iter()
                .all(|byte| *byte == b'0')
        {
            places.push((at, at + length, length));
        }
        at += length.max(1);
    }
    places
}

#[cfg(test)]
pub(super) mod tests;
