//! A bounded map that evicts what was not used lately (the clock algorithm: one mark per entry, a hand that goes round).
//! Entries have weights; the sum never exceeds the bound.
use std::collections::HashMap;
use std::hash::Hash;

/// The map.
pub struct Clock<K, V> {
    index: HashMap<K, usize>,
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<usize>,
    hand: usize,
    weight: usize,
    weight_max: usize,
}

struct Slot<K, V> {
    key: K,
    value: V,
    weight: usize,
    used: bool,
}

impl<K: Hash + Eq + Copy, V> Clock<K, V> {
    /// An empty map of at most `weight_max`.
    pub fn new(weight_max: usize) -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            hand: 0,
            weight: 0,
            weight_max,
        }
    }

    /// The value, marked as used.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        let at = *self.index.get(key)?;
        let slot = self.slots[at].as_mut()?;
        slot.used = true;
        Some(&slot.value)
    }

    /// Puts a value in, evicting others as needed; one that is heavier than the whole bound is not kept.
    pub fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        if weight > self.weight_max {
            return;
        }
        while self.weight + weight > self.weight_max {
            self.evict_one();
        }
        let slot = Some(Slot {
            key,
            value,
            weight,
            used: false,
        });
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.index.insert(key, at);
        self.weight += weight;
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.index.remove(key)?;
        let slot = self.slots[at].take()?;
        self.free.push(at);
        self.weight -= slot.weight;
        Some(slot.value)
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        *self = Self::new(self.weight_max);
    }

    fn evict_one(&mut self) {
        loop {
            self.hand = (self.hand + 1) % self.slots.len();
            match &mut self.slots[self.hand] {
                Some(slot) if slot.used => slot.used = false,
                Some(slot) => {
                    let key = slot.key;
                    self.remove(&key);
                    return;
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_used_stays() {
        let mut clock = Clock::new(3);
        for key in 0..3 {
            clock.insert(key, key, 1);
        }
        clock.get(&1);
        clock.insert(3, 3, 1);
        clock.get(&1);
        clock.insert(4, 4, 1);
        assert_eq!(clock.get(&1), Some(&1));
        assert_eq!(clock.weight, 3);
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_nothing_wrong_is_returned(
            steps in prop::collection::vec((0u8..20, 0usize..6, prop::bool::ANY), 1..300)
        ) {
            let mut clock = Clock::new(10);
            let mut model = HashMap::new();
            for (key, weight, insert) in steps {
                if insert {
                    clock.insert(key, weight, weight);
                    model.insert(key, weight);
                } else {
                    let removed = clock.remove(&key);
                    let expected = model.remove(&key);
                    prop_assert!(removed.is_none() || removed == expected);
                }
                prop_assert!(clock.weight <= 10);
                for (key, value) in &model {
                    if let Some(found) = clock.get(key) {
                        prop_assert_eq!(found, value);
                    }
                }
                let sum: usize = clock.slots.iter().flatten().map(|slot| slot.weight).sum();
                prop_assert_eq!(sum, clock.weight);
            }
        }
    }
}
