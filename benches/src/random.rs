//! Random numbers and texts that are the same for the same seed, on every machine and in every version.

/// Words of the texts: enough for pages that compress as those of real tables do.
const WORDS: [&str; 32] = [
    "account",
    "amount",
    "balance",
    "batch",
    "branch",
    "cancel",
    "carrier",
    "client",
    "deliver",
    "deposit",
    "entry",
    "freight",
    "harbour",
    "invoice",
    "ledger",
    "margin",
    "notice",
    "office",
    "order",
    "parcel",
    "payment",
    "pending",
    "quarter",
    "receipt",
    "refund",
    "region",
    "schedule",
    "shipment",
    "supplier",
    "transfer",
    "voucher",
    "warehouse",
];

/// SplitMix64: small, fast, and fixed for good.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "an endless source is no iterator: `next` never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A number as SQLite takes it, from 1 to `last`.
    pub fn row(&mut self, last: u64) -> i64 {
        i64::try_from(self.below(last) + 1).unwrap_or(i64::MAX)
    }

    /// Words and numbers, about this many bytes.
    pub fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 16);
        while text.len() < bytes {
            let draw = self.next();
            if draw.is_multiple_of(5) {
                text.push_str(&(draw >> 40).to_string());
            } else {
                text.push_str(WORDS[usize::from((draw >> 32) as u8) % WORDS.len()]);
            }
            text.push(' ');
        }
        text
    }

    /// Hex digits that do not repeat: an identifier.
    pub fn id(&mut self) -> String {
        format!("{:016x}{:08x}", self.next(), self.next() as u32)
    }

    /// Bytes that nothing compresses.
    pub fn noise(&mut self, bytes: usize) -> Vec<u8> {
        let mut noise = Vec::with_capacity(bytes + 8);
        while noise.len() < bytes {
            noise.extend(self.next().to_le_bytes());
        }
        noise.truncate(bytes);
        noise
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_gives_the_same_sequence_for_good() {
        let mut random = Random::new(1);
        assert_eq!(random.next(), 0x910a_2dec_8902_5cc1);
        assert_eq!(Random::new(7).text(60), Random::new(7).text(60));
        assert_ne!(Random::new(7).text(60), Random::new(8).text(60));
    }
}
