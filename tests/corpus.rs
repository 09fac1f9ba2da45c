//! Replays the committed fuzz corpora through the fuzz targets, without libFuzzer: each seed as it is, cut short at
//! every length, and with bytes changed by a generator that is the same in every run.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its corpus shall fail")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ringway::fuzzing::TARGETS;

/// Changed copies per seed.
const CHANGES: u64 = 256;
/// Seeds are small: the corpus is for regressions, not for coverage by bulk.
const SEED_BYTES: usize = 4096;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names_in(dir: &str) -> BTreeSet<String> {
    let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    fs::read_dir(fuzz_dir().join(dir)).unwrap().map(|entry| name(entry.unwrap().path())).collect()
}

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> =
        fs::read_dir(fuzz_dir().join("corpus").join(target)).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn changed(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=next(state) % 4 {
        let at = next(state) as usize % bytes.len().max(1);
        let Some(byte) = bytes.get_mut(at) else { break };
        *byte = match next(state) % 4 {
            0 => 0,
            1 => 0xff,
            2 => *byte ^ (1 << (next(state) % 8)),
            _ => next(state) as u8,
        };
    }
    bytes
}

#[test]
fn every_target_has_a_function_a_file_a_binary_and_seeds() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len(), "a name stands twice in TARGETS");
    assert_eq!(names, names_in("fuzz_targets"), "ringway::fuzzing::TARGETS and fuzz/fuzz_targets");
    assert_eq!(names, names_in("corpus"), "ringway::fuzzing::TARGETS and fuzz/corpus");
    let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "[[bin]] {name} in fuzz/Cargo.toml"
        );
        let file = fs::read_to_string(fuzz_dir().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(file.contains(&format!("fuzzing::{name}(")), "fuzz_targets/{name}.rs calls its function");
        assert!(!seeds(name).is_empty(), "seeds in fuzz/corpus/{name}");
    }
}

#[test]
fn the_corpora_replay() {
    for (name, target) in TARGETS {
        target(&[]);
        for (path, seed) in seeds(name) {
            assert!(seed.len() <= SEED_BYTES, "{} is too large for a seed", path.display());
            // What panics says which target it was; this says which seed, should it come to that.
            println!("{}", path.display());
            target(&seed);
            for len in 0..seed.len() {
                target(&seed[..len]);
            }
            let mut state = 1;
            for _ in 0..CHANGES {
                target(&changed(&seed, &mut state));
            }
        }
    }
}
