//! The delay ladder: delays made of fixed-TTL queues, so that nothing waits behind a longer delay.
//!
//! A delay is a number of ticks of 100 ms, written in binary into the routing key: `b27.….b0.<address>`. Level
//! *n* is a topic exchange and a queue whose messages live 2ⁿ ticks: a message with bit *n* set is queued there,
//! one without goes on to level *n*-1 at once, and what a queue lets go also goes on to level *n*-1. Below
//! level 0 is the foot, which routes by the address. A message enters at its highest set bit. The idea is
//! NServiceBus's (its RabbitMQ transport, delay infrastructure version 2), there with a tick of a second.

use std::time::Duration;

/// Number of levels.
pub const LEVELS: u32 = 28;
/// One tick.
pub const TICK: Duration = Duration::from_millis(100);
/// Most ticks: 310 days.
pub const MAX_TICKS: u32 = (1 << LEVELS) - 1;

/// The ticks for a delay: rounded up, so that nothing comes early; `None` beyond what the ladder can hold.
#[must_use]
pub fn ticks(delay: Duration) -> Option<u32> {
    let ticks = delay.as_nanos().div_ceil(TICK.as_nanos());
    u32::try_from(ticks).ok().filter(|ticks| *ticks <= MAX_TICKS)
}

/// The ticks for a delay, cut to what the ladder can hold.
#[must_use]
pub fn ticks_capped(delay: Duration) -> u32 {
    ticks(delay).unwrap_or(MAX_TICKS)
}

/// The level where so many ticks begin: the highest set bit. `None` for no delay.
#[must_use]
pub fn entry_level(ticks: u32) -> Option<u32> {
    ticks.checked_ilog2().map(|level| level.min(LEVELS - 1))
}

/// The routing key of a message that waits so many ticks and then goes to `address`.
#[must_use]
pub fn key(ticks: u32, address: &str) -> String {
    let bits = (0..LEVELS).rev().map(|level| if ticks >> level & 1 == 1 { "1." } else { "0." });
    bits.chain([address]).collect()
}

/// How long the queue of a level holds a message.
#[must_use]
pub fn ttl(level: u32) -> Duration {
    TICK * (1 << level)
}

/// The binding key of a level for messages whose bit is `bit`: queued where 1, passed on where 0.
#[must_use]
pub fn binding(level: u32, bit: u8) -> String {
    format!("{}{bit}.#", "*.".repeat((LEVELS - 1 - level) as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a topic binding key matches, as AMQP 0.9.1 says: `*` is one word, `#` any number.
    fn matches(binding: &[&str], key: &[&str]) -> bool {
        match (binding.first(), key.first()) {
            (None, None) => true,
            (Some(&"#"), _) => {
                matches(&binding[1..], key) || (!key.is_empty() && matches(binding, &key[1..]))
            }
            (Some(word), Some(first)) if *word == "*" || word == first => matches(&binding[1..], &key[1..]),
            _ => false,
        }
    }

    /// Walks the ladder as the broker would: the sum of the TTLs on the way, and the key at the foot.
    fn walk(ticks: u32) -> Duration {
        let key = key(ticks, "media.normal.image.thumbnail");
        let words: Vec<&str> = key.split('.').collect();
        let mut waited = Duration::ZERO;
        for level in (0..=entry_level(ticks).unwrap()).rev() {
            let takes = |bit| matches(&binding(level, bit).split('.').collect::<Vec<_>>(), &words);
            assert!(takes(0) != takes(1), "level {level} routes {key} to exactly one place");
            if takes(1) {
                waited += ttl(level);
            }
        }
        waited
    }

    #[test]
    fn keys_by_hand() {
        assert_eq!(key(1, "a"), format!("{}1.a", "0.".repeat(27)));
        assert_eq!(key(MAX_TICKS, "a"), format!("{}a", "1.".repeat(28)));
        assert_eq!(key(5, "q.normal.k"), format!("{}1.0.1.q.normal.k", "0.".repeat(25)));
        assert_eq!(
            [entry_level(0), entry_level(1), entry_level(5), entry_level(MAX_TICKS)],
            [None, Some(0), Some(2), Some(27)]
        );
        assert_eq!(binding(27, 1), "1.#");
        assert_eq!(binding(0, 0), format!("{}0.#", "*.".repeat(27)));
    }

    #[test]
    fn delays_round_up() {
        for (ms, expected) in [(0, 0), (1, 1), (100, 1), (101, 2), (1_000, 10), (3_600_000, 36_000)] {
            assert_eq!(ticks(Duration::from_millis(ms)), Some(expected), "{ms} ms");
        }
        assert_eq!(ticks(TICK * MAX_TICKS), Some(MAX_TICKS));
        assert_eq!(ticks(TICK * MAX_TICKS + Duration::from_nanos(1)), None);
        assert_eq!(ticks_capped(Duration::MAX), MAX_TICKS);
    }

    proptest! {
        #[test]
        fn a_message_waits_exactly_its_ticks(ticks in 1..=MAX_TICKS) {
            prop_assert_eq!(walk(ticks), TICK * ticks);
        }

        #[test]
        fn no_delay_is_cut_short(ms in 0..u64::from(MAX_TICKS) * 100) {
            let delay = Duration::from_millis(ms);
            let held = TICK * ticks(delay).unwrap();
            prop_assert!(held >= delay && held - delay < TICK);
        }

        #[test]
        fn the_address_follows_the_bits(ticks in 0..=MAX_TICKS, address in "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}") {
            let key = key(ticks, &address);
            let words: Vec<&str> = key.splitn(29, '.').collect();
            prop_assert_eq!(words[28], address);
            let bits = words[..28].iter().fold(0, |bits, word| bits << 1 | word.parse::<u32>().unwrap());
            prop_assert_eq!(bits, ticks);
        }
    }
}
