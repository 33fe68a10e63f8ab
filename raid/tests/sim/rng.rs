//! The only source of chance: xoroshiro128++ seeded through splitmix64, so that a run is its seed.

/// A generator; equal seeds give equal runs.
pub(crate) struct Rng {
    a: u64,
    b: u64,
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    pub(crate) fn new(mut seed: u64) -> Rng {
        Rng { a: splitmix(&mut seed), b: splitmix(&mut seed) }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let (a, mut b) = (self.a, self.b);
        let out = a.wrapping_add(b).rotate_left(17).wrapping_add(a);
        b ^= a;
        self.a = a.rotate_left(49) ^ b ^ (b << 21);
        self.b = b.rotate_left(28);
        out
    }

    /// One of `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// One of `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `num` times of `den`.
    pub(crate) fn chance(&mut self, num: u64, den: u64) -> bool {
        num > 0 && self.below(den) < num
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
