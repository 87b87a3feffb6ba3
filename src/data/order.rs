//! The order in which an epoch visits its rows.
//!
//! `random` is the order of PyTorch's `randperm` with a CPU generator seeded `seed + epoch`, which
//! is what the Hugging Face trainers use, so that a run can be compared with a peer batch by batch.

use serde::{Deserialize, Serialize};

/// In which order rows are visited (TRL's `train_sampling_strategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A new permutation each epoch.
    #[default]
    Random,
    /// As in the file.
    Sequential,
    /// A new permutation each epoch, sorted by falling length within groups of batches, the longest
    /// row of all first.
    GroupByLength,
}

impl Order {
    /// The visiting order of `epoch` over rows of the given lengths, for updates of `update_rows`
    /// rows. A pure function of its arguments.
    pub fn permutation(
        self,
        lengths: &[u32],
        update_rows: usize,
        seed: u64,
        epoch: u64,
    ) -> Vec<u32> {
        let seed = seed.wrapping_add(epoch);
        match self {
            Order::Sequential => (0..lengths.len() as u32).collect(),
            Order::Random => randperm(lengths.len(), seed),
            Order::GroupByLength => {
                group_by_length(randperm(lengths.len(), seed), lengths, update_rows)
            }
        }
    }
}

/// Rows of similar length side by side: the permutation is cut into groups of up to 50 updates, and
/// each group is sorted by falling length.
fn group_by_length(mut rows: Vec<u32>, lengths: &[u32], update_rows: usize) -> Vec<u32> {
    let updates = (rows.len() / (update_rows * 4)).clamp(1, 50);
    let group = updates * update_rows;
    for part in rows.chunks_mut(group) {
        part.sort_by_key(|&row| std::cmp::Reverse(lengths[row as usize]));
    }
    // The longest row comes first, so that running out of memory shows at once.
    let heads = (0..rows.len()).step_by(group);
    let longest = heads.rev().max_by_key(|&at| lengths[rows[at] as usize]);
    if let Some(at) = longest {
        rows.swap(0, at);
    }
    rows
}

/// `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` on the CPU.
pub fn randperm(n: usize, seed: u64) -> Vec<u32> {
    assert!(u32::try_from(n).is_ok(), "more rows than an index holds");
    let mut rng = Mt19937::new(seed as u32); // PyTorch seeds its engine with the low word
    let mut rows: Vec<u32> = (0..n as u32).collect();
    // Where one word would be noticeably biased, PyTorch draws two.
    let wide = n >= (u32::MAX / 20) as usize;
    for i in 0..n.saturating_sub(1) {
        let draw = match wide {
            true => u64::from(rng.next()) << 32 | u64::from(rng.next()),
            false => u64::from(rng.next()),
        };
        rows.swap(i, i + (draw % (n - i) as u64) as usize);
    }
    rows
}

/// The Mersenne twister of Matsumoto and Nishimura (1998), 32-bit.
struct Mt19937 {
    state: [u32; Self::N],
    at: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = (last ^ last >> 30)
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { state, at: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.at == Self::N {
            self.twist();
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::N] & 0x7fff_ffff;
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ y >> 1 ^ odd;
        }
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 10000th output for the default seed is fixed by the C++ standard.
    #[test]
    fn mersenne_twister_known_answer() {
        let mut rng = Mt19937::new(5489);
        let last = (0..10_000).map(|_| rng.next()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn randperm_is_torch_s() {
        assert_eq!(randperm(8, 42), [6, 3, 0, 7, 2, 1, 4, 5]);
        assert_eq!(randperm(8, 43), [4, 5, 7, 1, 3, 2, 6, 0]);
        assert!(randperm(0, 1).is_empty());
        assert_eq!(randperm(1, 1), [0]);
    }

    #[test]
    fn grouping_puts_the_longest_row_first_and_keeps_every_row() {
        let lengths: Vec<u32> = (0..100).map(|i| (i * 37) % 101).collect();
        let rows = Order::GroupByLength.permutation(&lengths, 4, 42, 0);
        assert_eq!(
            lengths[rows[0] as usize],
            *lengths.iter().max().expect("rows")
        );
        let mut sorted = rows.clone();
        sorted.sort();
        assert!(sorted.iter().copied().eq(0..100));
        // Within a group (24 rows: 6 updates of 4) lengths fall, the swapped head apart.
        let falling = |part: &[u32]| {
            part[1..]
                .windows(2)
                .all(|w| lengths[w[0] as usize] >= lengths[w[1] as usize])
        };
        assert!(rows.chunks(24).all(falling));
        assert_ne!(rows, Order::GroupByLength.permutation(&lengths, 4, 42, 1));
    }
}
