//! Which rows of a table count, by address: the fragment in the upper half, the place there in the lower.

use std::collections::HashMap;

/// A bit a row of a fragment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub fn none(rows: usize) -> Bits {
        Bits(vec![0; rows.div_ceil(64)])
    }

    pub fn all(rows: usize) -> Bits {
        let mut bits = Bits(vec![u64::MAX; rows.div_ceil(64)]);
        if let Some(last) = bits.0.last_mut()
            && !rows.is_multiple_of(64)
        {
            *last = (1 << (rows % 64)) - 1;
        }
        bits
    }

    pub fn has(&self, row: usize) -> bool {
        self.0.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    pub fn set(&mut self, row: usize, on: bool) {
        if row / 64 >= self.0.len() {
            self.0.resize(row / 64 + 1, 0);
        }
        let word = &mut self.0[row / 64];
        *word = *word & !(1 << (row % 64)) | u64::from(on) << (row % 64);
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The rows whose bit is set, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(i, &word)| {
            let mut word = word;
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                (word != 0).then(|| {
                    word &= word - 1;
                    i * 64 + bit as usize
                })
            })
        })
    }
}

/// The rows of a table that count. A bit a row where some of a fragment do and some do not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    fragments: HashMap<u32, Bits>,
    /// Whether fragments that are not named count with all their rows, or with none.
    others: bool,
    nothing: Bits,
}

impl Rows {
    pub fn all() -> Rows {
        Rows { others: true, ..Rows::default() }
    }

    pub fn none() -> Rows {
        Rows::default()
    }

    /// All rows but those that these fragments leave out.
    pub fn but(fragments: HashMap<u32, Bits>) -> Rows {
        Rows { fragments, others: true, nothing: Bits::default() }
    }

    pub fn insert(&mut self, address: u64) {
        self.fragments.entry((address >> 32) as u32).or_default().set(address as u32 as usize, true);
    }

    /// The bits of a fragment; `None` where all its rows count.
    pub fn of(&self, fragment: u32) -> Option<&Bits> {
        self.fragments.get(&fragment).or((!self.others).then_some(&self.nothing))
    }

    pub fn has(&self, address: u64) -> bool {
        self.of((address >> 32) as u32).is_none_or(|bits| bits.has(address as u32 as usize))
    }

    /// The addresses of the rows of the named fragments that count, in order.
    pub fn addresses(&self) -> Vec<u64> {
        let mut ids: Vec<u32> = self.fragments.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().flat_map(|id| self.fragments[&id].iter().map(move |row| u64::from(id) << 32 | row as u64)).collect()
    }

    /// How many rows the named fragments have that count.
    pub fn named(&self) -> u64 {
        self.fragments.values().map(Bits::count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_rows() {
        let mut bits = Bits::all(70);
        assert_eq!((bits.count(), bits.has(69), bits.has(70)), (70, true, false));
        bits.set(64, false);
        bits.set(200, true);
        assert_eq!((bits.count(), bits.has(64), bits.has(200)), (70, false, true));
        assert_eq!(bits.iter().collect::<Vec<_>>(), (0..64).chain(65..70).chain([200]).collect::<Vec<_>>());
        let mut rows = Rows::none();
        rows.insert(3 << 32 | 5);
        assert!(rows.has(3 << 32 | 5) && !rows.has(3 << 32 | 4) && !rows.has(5));
        assert_eq!((rows.named(), rows.of(0).map(Bits::count)), (1, Some(0)));
        let rows = Rows::but([(1, Bits::none(9))].into());
        assert!(rows.has(7) && !rows.has(1 << 32) && rows.of(0).is_none());
    }
}
