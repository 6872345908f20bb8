//! A client that keeps its release while two share a route: a cookie has a place between 0 and 9,999, given once, and the shares
//! of the releases are laid out over those places with the newest first. The same place always means the same release, and when
//! the newer one's share grows, clients move to it and never back. No list of clients is kept, and every edge agrees.

use crate::choose::random;
use http::HeaderMap;
use http::header::{COOKIE, HeaderValue};

const NAME: &str = "kiln-place";
/// Places, so that a share of one hundredth of a percent has one.
const PLACES: u64 = 10_000;

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    number: u64,
    /// It was given just now: the client has to be told.
    pub(crate) is_new: bool,
}

impl Place {
    /// That of the request's cookie, or a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let told = pairs.find_map(|(name, value)| {
            let legal = value.len() <= 4 && !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            (name == NAME && legal).then(|| value.parse().ok()).flatten()
        });
        Self { number: told.unwrap_or_else(|| random() % PLACES), is_new: told.is_none() }
    }

    /// The place among `total` shares.
    pub(crate) fn among(self, total: u64) -> u64 {
        self.number * total / PLACES
    }

    /// What tells the client.
    pub(crate) fn cookie(self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("{NAME}={}; Path=/; HttpOnly; SameSite=Lax", self.number)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_says_the_place_and_anything_else_is_a_new_client() {
        let of = |line: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, line.parse().unwrap());
            Place::of(&headers)
        };
        assert_eq!(of("a=b; kiln-place=42; c=d"), Place { number: 42, is_new: false });
        assert_eq!(of("kiln-place=9999").among(100), 99);
        for wrong in
            ["", "kiln-place=", "kiln-place=10000", "kiln-place=-1", "xkiln-place=1", "kiln-place=1x"]
        {
            assert!(of(wrong).is_new, "{wrong}");
        }
        let new = Place::of(&HeaderMap::new());
        assert!(new.is_new && new.among(1) == 0 && new.number < PLACES);
        let cookie = new.cookie().unwrap();
        assert_eq!(of(cookie.to_str().unwrap().split(';').next().unwrap()).number, new.number);
    }

    #[test]
    fn a_growing_share_takes_clients_and_gives_none_back() {
        for number in 0..PLACES {
            let place = Place { number, is_new: false };
            let mut was_new = false;
            for share in [1, 5, 25, 50, 100] {
                let is_newer = place.among(100) < share;
                assert!(is_newer || !was_new, "place {number} went back at {share} %");
                was_new = is_newer;
            }
        }
    }
}
