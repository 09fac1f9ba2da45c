//! The invites of the store: who may become a peer, and who has by which. What a client that comes is told is decided
//! here ([`Invites::look`]); a use is spent by the store.

use std::collections::{BTreeMap, HashMap};

use crate::store::Invite;
use crate::types::{Moment, PublicKey};

/// Most keys of invites that are kept at a time: each is a peer of the model.
pub const MAX_KEYS: usize = 16_384;
/// How long an invite is known, and refuses by name, after its end, seconds.
pub const KEPT: u32 = 7 * 86_400;

/// Declares the outcomes once.
macro_rules! outcomes {
    ($($variant:ident $label:literal $text:literal;)*) => {
        /// What became of an ENROLL.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $(#[doc = $text] $variant,)*
        }

        impl Outcome {
            /// Every outcome.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As metrics name it.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// As people are told.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

outcomes! {
    Joined "joined" "a peer was made";
    Again "again" "the same answer once more";
    Spent "spent" "this invite is spent";
    Expired "expired" "this invite has expired";
    Revoked "revoked" "this invite was revoked";
    BadProof "bad_proof" "the proof of the invite is wrong";
    BadKey "bad_key" "this key cannot be a peer's";
    KnownKey "known_key" "this key is known here already";
    Removed "removed" "this key has been let in by this invite, and is a peer no more";
    NoAddress "no_address" "no address is free";
    NotStored "not_stored" "a new peer cannot be stored at present";
}

/// All invites.
#[derive(Debug, Default)]
pub struct Invites {
    by_id: BTreeMap<String, Invite>,
    by_key: HashMap<PublicKey, String>,
    counts: [u64; Outcome::ALL.len()],
}

impl Invites {
    /// Those that the store had when it was opened.
    #[must_use]
    pub fn new(stored: Vec<Invite>) -> Self {
        let mut invites = Self::default();
        for invite in stored {
            invites.put(invite);
        }
        invites
    }

    /// The invite of this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Invite> {
        self.by_id.get(id)
    }

    /// The invite of which this is the key of a use.
    #[must_use]
    pub fn of_key(&self, key: &PublicKey) -> Option<&Invite> {
        self.by_key.get(key).and_then(|id| self.by_id.get(id))
    }

    /// The keys of all uses.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        self.by_key.keys().copied()
    }

    /// How many keys there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_key.len()
    }

    /// Those whose ids come after this one, in the order of ids.
    pub fn after<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Invite> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.by_id.range::<str, _>((Excluded(id), Unbounded)).map(|(_, invite)| invite)
    }

    /// Takes up a new invite.
    pub fn put(&mut self, invite: Invite) {
        self.by_key.extend(invite.keys.iter().map(|key| (*key, invite.id.clone())));
        self.by_id.insert(invite.id.clone(), invite);
    }

    /// An invite is taken back; once.
    pub fn revoke(&mut self, id: &str, at: Moment) {
        if let Some(invite) = self.by_id.get_mut(id) {
            invite.revoked.get_or_insert(at);
        }
    }

    /// Somebody has become a peer by it.
    pub fn enrolled(&mut self, id: &str, client: PublicKey, at: Moment) {
        if let Some(invite) = self.by_id.get_mut(id) {
            invite.enrolled.push((client, at));
        }
    }

    /// Forgets an invite.
    pub fn remove(&mut self, id: &str) -> Option<Invite> {
        let invite = self.by_id.remove(id)?;
        invite.keys.iter().for_each(|key| drop(self.by_key.remove(key)));
        Some(invite)
    }

    /// One whose end is [`KEPT`] ago.
    #[must_use]
    pub fn forgettable(&self, now: Moment) -> Option<&Invite> {
        let ended = |invite: &&Invite| end(invite).0.saturating_add(KEPT) <= now.0;
        self.by_id.values().find(ended)
    }

    /// What a client that has proven to hold a key of this invite is told, as far as the invite is concerned:
    /// [`Outcome::Joined`] if it may become a peer, [`Outcome::Again`] if it has.
    #[must_use]
    pub fn look(invite: &Invite, client: &PublicKey, now: Moment) -> Outcome {
        if invite.enrolled.iter().any(|(known, _)| known == client) {
            return Outcome::Again;
        }
        standing(invite, now)
    }

    /// Counts what became of an ENROLL.
    pub fn count_outcome(&mut self, outcome: Outcome) {
        if let Some(count) = self.counts.get_mut(outcome as usize) {
            *count += 1;
        }
    }

    /// What became of all of them.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::ALL.iter().copied().zip(self.counts)
    }
}

/// What somebody new is told: [`Outcome::Joined`] while there is a use.
#[must_use]
pub fn standing(invite: &Invite, now: Moment) -> Outcome {
    if invite.revoked.is_some() {
        Outcome::Revoked
    } else if invite.expires <= now {
        Outcome::Expired
    } else if invite.enrolled.len() >= invite.keys.len() {
        Outcome::Spent
    } else {
        Outcome::Joined
    }
}

/// When it ended or ends by itself.
fn end(invite: &Invite) -> Moment {
    invite.revoked.map_or(invite.expires, |at| at.min(invite.expires))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite(id: &str, first: u8, uses: u8) -> Invite {
        Invite {
            id: id.to_owned(),
            keys: (first..first + uses).map(|n| PublicKey([n; 32])).collect(),
            prefix: "p".to_owned(),
            group: String::new(),
            created: Moment(10),
            expires: Moment(20),
            revoked: None,
            enrolled: Vec::new(),
        }
    }

    #[test]
    fn an_invite_lets_in_so_many_until_its_end_and_the_same_again_for_ever() {
        let mut invites = Invites::new(vec![invite("a", 1, 2), invite("b", 8, 1)]);
        let (one, two, three) = (PublicKey([101; 32]), PublicKey([102; 32]), PublicKey([103; 32]));
        let told =
            |invites: &Invites, client, now| Invites::look(invites.get("a").unwrap(), client, Moment(now));
        assert_eq!(told(&invites, &one, 19), Outcome::Joined);
        assert_eq!(told(&invites, &one, 20), Outcome::Expired);
        invites.enrolled("a", one, Moment(11));
        assert_eq!((told(&invites, &one, 99), told(&invites, &two, 19)), (Outcome::Again, Outcome::Joined));
        invites.enrolled("a", two, Moment(12));
        assert_eq!(
            (told(&invites, &three, 19), told(&invites, &three, 20)),
            (Outcome::Spent, Outcome::Expired)
        );
        invites.revoke("a", Moment(13));
        invites.revoke("a", Moment(14));
        assert_eq!(
            (told(&invites, &three, 19), told(&invites, &one, 19)),
            (Outcome::Revoked, Outcome::Again)
        );
        assert_eq!(invites.get("a").unwrap().revoked, Some(Moment(13)));
        assert_eq!(
            Invites::look(invites.get("b").unwrap(), &one, Moment(19)),
            Outcome::Joined,
            "another invite"
        );
    }

    #[test]
    fn an_invite_is_found_by_its_keys_until_it_is_forgotten() {
        let mut invites = Invites::new(vec![invite("a", 1, 2), invite("b", 8, 1)]);
        invites.revoke("b", Moment(15));
        assert_eq!(invites.of_key(&PublicKey([2; 32])).unwrap().id, "a");
        assert_eq!((invites.count(), invites.after("a").count()), (3, 1));
        assert!(invites.forgettable(Moment(14 + KEPT)).is_none());
        assert_eq!(invites.forgettable(Moment(15 + KEPT)).unwrap().id, "b");
        assert!(invites.remove("b").is_some() && invites.remove("b").is_none());
        assert!(invites.forgettable(Moment(19 + KEPT)).is_none());
        assert_eq!(invites.forgettable(Moment(20 + KEPT)).unwrap().id, "a");
        invites.remove("a");
        assert!(invites.of_key(&PublicKey([2; 32])).is_none() && invites.keys().next().is_none());
    }
}
