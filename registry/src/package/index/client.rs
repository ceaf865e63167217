//! An index as a client believes it.

use std::path::{Path, PathBuf};

use super::fetch::{Tree, replace};
use super::{
    MAX_LIST, MAX_SNAPSHOT, MAX_TIMESTAMP, Offer, Registry, SnapshotDoc, TIMESTAMP, TIMESTAMP_TYPE,
    TimestampDoc, blob,
};
use crate::digest::Digest;
use crate::error::nearest;
use crate::package::error::{Problem, Result};
use crate::package::store::order;
use crate::package::{EXTENSION, Platform};
use crate::trust::{
    Envelope, Ratchet, Role, Timestamp, TrustSet, TrustedKey, parse_typed, payload_type, read_capped,
};

/// The state of a registry at one moment: signed, not ended, and not older than what was seen before.
pub struct Index {
    registry: Registry,
    tree: Tree,
    snapshot: SnapshotDoc,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({}, serial {})", self.registry.name, self.snapshot.serial)
    }
}

impl Index {
    /// Asks the registry, checks what it says, and remembers its serial in the state directory.
    pub fn open(state: &Path, registry: &Registry, now: Timestamp, offline: bool) -> Result<Self> {
        let tree = Tree::open(&registry.location, offline)?;
        let wrong = |why: String| Problem::Index(why).of(format!("registry `{}`", registry.name));
        // Its own keys and nobody else's: who signs one registry's index says nothing about another's.
        let mut keys = TrustSet::default();
        for key in &registry.keys {
            keys.add(TrustedKey::new(*key, registry.name.clone(), &[Role::Index]));
        }
        let document = tree.read(TIMESTAMP, MAX_TIMESTAMP)?;
        let verified = Envelope::parse(&document, MAX_TIMESTAMP as usize)
            .and_then(|envelope| envelope.verify(&keys, Role::Index, TIMESTAMP_TYPE, now))
            .map_err(|error| wrong(format!("its timestamp: {error}")))?;
        let stamp: TimestampDoc = verified.parse().map_err(|error| wrong(error.to_string()))?;
        if stamp.expires <= now {
            return Err(wrong(format!(
                "its timestamp ended at {}: it is not kept up, or somebody keeps newer ones from here; who runs it \
                 signs it anew with `backplane plugin index`",
                stamp.expires
            )));
        }
        let seen = Seen::of(state, registry);
        let mut ratchet = seen.read()?;
        ratchet.advance(TIMESTAMP, verified.signers(), stamp.serial).map_err(|error| {
            wrong(format!(
                "an older state than was seen before: {error}; where there is no newer one, as after the highest serial, \
                 who runs it signs it with another key, and you name that with `backplane plugin trust registry`"
            ))
        })?;

        let signed = tree.blob(&stamp.snapshot, MAX_SNAPSHOT)?;
        let snapshot: SnapshotDoc = Envelope::parse(&signed, MAX_SNAPSHOT as usize)
            .and_then(|envelope| envelope.verify(&keys, Role::Index, payload_type::SNAPSHOT, now))
            .and_then(|payload| payload.parse())
            .map_err(|error| wrong(format!("its snapshot: {error}")))?;
        if snapshot.serial != stamp.serial {
            return Err(wrong(format!(
                "its timestamp is of the serial {} and its snapshot of {}",
                stamp.serial, snapshot.serial
            )));
        }
        seen.write(&ratchet)?;
        Ok(Self { registry: registry.clone(), tree, snapshot })
    }

    pub fn serial(&self) -> u64 {
        self.snapshot.serial
    }

    /// The plugins that it has.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.snapshot.plugins.keys().map(String::as_str)
    }

    /// The signed revocation list that goes with it.
    pub fn revocations(&self) -> Result<Option<Vec<u8>>> {
        self.snapshot.revocations.map(|digest| self.tree.blob(&digest, MAX_LIST)).transpose()
    }

    /// The versions of a plugin, from the oldest to the newest.
    pub fn offers(&self, id: &str) -> Result<Vec<Offer>> {
        let Some(digest) = self.snapshot.plugins.get(id) else {
            let near = nearest(id, self.ids());
            let hint = near.first().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let what = format!("the registry `{}` has no such plugin{hint}", self.registry.name);
            return Err(Problem::NotFound(what).of(format!("`{id}`")));
        };
        let text = self.tree.blob(digest, MAX_LIST)?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mut offers = lines.map(parse_typed).collect::<Result<Vec<Offer>, _>>().map_err(|error| {
            Problem::Index(format!("the list of `{id}`: {error}")).of(&self.registry.name)
        })?;
        offers.sort_by(|a, b| order(&a.version, &b.version));
        Ok(offers)
    }

    /// The version that is asked for, or the newest that is no pre-release.
    pub fn choose(&self, id: &str, version: Option<&str>) -> Result<Offer> {
        let here = Platform::here().to_string();
        let offers = self.offers(id)?;
        let fits = |offer: &&Offer| offer.platform == here;
        let found = match version {
            Some(version) => offers.iter().filter(fits).find(|offer| offer.version == version),
            None => {
                let release = |offer: &&Offer| {
                    semver::Version::parse(&offer.version).is_ok_and(|version| version.pre.is_empty())
                };
                offers.iter().filter(fits).filter(|offer| !offer.yanked).rfind(release)
            }
        };
        if let Some(offer) = found {
            if offer.yanked {
                let what = format!("version {} was withdrawn by the registry", offer.version);
                return Err(Problem::Policy(what).of(format!("`{id}`")));
            }
            return Ok(offer.clone());
        }
        let known: Vec<_> = offers
            .iter()
            .map(|offer| {
                format!(
                    "{} for {}{}",
                    offer.version,
                    offer.platform,
                    if offer.yanked { " (withdrawn)" } else { "" }
                )
            })
            .collect();
        let wanted = version.map_or_else(|| "a release".to_owned(), |version| format!("version {version}"));
        let what = format!(
            "the registry `{}` has not {wanted} for {here}; it has {}",
            self.registry.name,
            known.join(", ")
        );
        Err(Problem::NotFound(what).of(format!("`{id}`")))
    }

    /// Brings a package into `folder`: the file that the index names, to the byte.
    pub fn bring(&self, id: &str, offer: &Offer, folder: &Path) -> Result<PathBuf> {
        let to = folder.join(format!("{id}-{}.{EXTENSION}", offer.version));
        self.tree.bring(&blob(&offer.sha256), &to, offer.size)?;
        let found = Digest::of_file(&to).map_err(crate::package::error::io("read", &to))?;
        if found != offer.sha256 {
            let what = format!("it has the sha256 {found}, and the index says {}", offer.sha256);
            return Err(Problem::Modified(what).at(&to));
        }
        Ok(to)
    }
}

/// The serials that were seen of one registry.
struct Seen(PathBuf);

impl Seen {
    fn of(state: &Path, registry: &Registry) -> Self {
        Self(state.join("trust/registries").join(format!("{}.json", registry.name)))
    }

    fn read(&self) -> Result<Ratchet> {
        match read_capped(&self.0, 1 << 20) {
            Ok(bytes) => parse_typed(&bytes).map_err(|error| {
                Problem::Index(format!(
                    "{error}; it holds the serials that were seen: remove it to forget them"
                ))
                .at(&self.0)
            }),
            Err(_) if !self.0.exists() => Ok(Ratchet::default()),
            Err(error) => Err(Problem::Index(error.to_string()).at(&self.0)),
        }
    }

    fn write(&self, ratchet: &Ratchet) -> Result<()> {
        let text =
            serde_json::to_string(ratchet).map_err(|error| Problem::Index(error.to_string()).at(&self.0))?;
        replace(&self.0, text.as_bytes())
    }
}
