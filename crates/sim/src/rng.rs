//! Chance, from a seed.

/// splitmix64: small, and good enough to draw faults and orders.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each seed, similar seeds included.
    pub fn new(seed: u64) -> Self {
        let mut rng = Self(seed ^ 0x5EED_0000_1C11_0000);
        rng.next();
        rng
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// True in `rate` of 100,000 cases.
    pub fn chance(&mut self, rate: u32) -> bool {
        // Without a draw for what never happens, a profile without faults is the same with every rate.
        rate > 0 && self.next() % 100_000 < u64::from(rate)
    }
}
