//! How often each client of a route may ask: one bucket per address, shared by all threads, since a client's connections are.
//! Only routes with such a rule come here, so nobody else pays for the lock.

use crate::limits::RATE_CLIENTS_MAX;
use kiln_model::policy::Rate;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SHARDS: usize = 16;

/// What a client may still do.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// The buckets of some clients. When there are too many, those who did not come for the longest time are forgotten: memory has a
/// bound, and a stranger who can have so many addresses is not stopped by counting them.
#[derive(Debug, Default)]
struct Buckets {
    recent: HashMap<IpAddr, Bucket>,
    older: HashMap<IpAddr, Bucket>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    hasher: RandomState,
    shards: [Mutex<Buckets>; SHARDS],
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, hasher: RandomState::new(), shards: Default::default() }
    }

    /// The rule that it keeps.
    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one request out of the client's bucket; if it is empty, how long until there is one again.
    pub(crate) fn take(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let client = who(client);
        let shard = &self.shards[self.hasher.hash_one(client) as usize % SHARDS];
        let mut buckets = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = buckets.recent.remove(&client).or_else(|| buckets.older.remove(&client));
        if buckets.recent.len() >= RATE_CLIENTS_MAX / SHARDS / 2 {
            buckets.older = std::mem::take(&mut buckets.recent);
        }
        let full = Bucket { tokens: f64::from(self.rate.burst), at: now };
        let bucket = buckets.recent.entry(client).or_insert_with(|| known.unwrap_or(full));
        *bucket = Bucket { tokens: self.filled(bucket, now), at: now };
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second()))
    }

    fn per_second(&self) -> f64 {
        f64::from(self.rate.requests) / self.rate.per.duration().as_secs_f64().max(0.001)
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let came = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second();
        (bucket.tokens + came).min(f64::from(self.rate.burst))
    }
}

/// Whoever has an IPv6 address has 2^64 of them.
fn who(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::Millis;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds_for_each_client() {
        let limiter = Limiter::new(Rate { requests: 10, per: Millis(1000), burst: 3 });
        let (begun, client) = (Instant::now(), "192.0.2.1".parse().unwrap());
        let at = |ms| begun + Duration::from_millis(ms);
        assert!((0..3).all(|_| limiter.take(client, at(0)).is_ok()));
        let wait = limiter.take(client, at(0)).unwrap_err();
        assert!((Duration::from_millis(99)..=Duration::from_millis(101)).contains(&wait), "{wait:?}");
        assert!(limiter.take("192.0.2.2".parse().unwrap(), at(0)).is_ok(), "another client");
        assert!(limiter.take(client, at(50)).is_err());
        assert!(limiter.take(client, at(101)).is_ok() && limiter.take(client, at(101)).is_err());
        let passed = (0..1000).filter(|n| limiter.take(client, at(10_000 + n)).is_ok()).count();
        assert!((12..=13).contains(&passed), "{passed} in a second: the burst and ten more");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_memory_is_bounded() {
        let limiter = Limiter::new(Rate { requests: 1, per: Millis(60_000), burst: 1 });
        let now = Instant::now();
        assert!(limiter.take("2001:db8::1".parse().unwrap(), now).is_ok());
        assert!(limiter.take("2001:db8::2".parse().unwrap(), now).is_err());
        assert!(limiter.take("2001:db8:0:1::2".parse().unwrap(), now).is_ok());
        for n in 0..2 * RATE_CLIENTS_MAX as u32 {
            let _ = limiter.take(std::net::Ipv4Addr::from(n).into(), now);
        }
        let n: usize =
            limiter.shards.iter().map(|s| s.lock().unwrap()).map(|b| b.recent.len() + b.older.len()).sum();
        assert!(n <= RATE_CLIENTS_MAX, "{n}");
    }
}
