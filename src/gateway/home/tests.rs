//! The lock and the key, in directories of the tests' own.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::crypto::x25519::PrivateKey;
use crate::sys::testing::Scratch;

#[test]
fn one_process_per_directory_and_nothing_left() {
    let scratch = Scratch::new("lock");
    let path = scratch.0.join("ringway/wg0");
    let held = RunDir::take(&path).unwrap();
    assert_eq!(held.predecessor(), None);
    let second = RunDir::take(&path).unwrap_err();
    assert!(matches!(&second, HomeError::Running { pid, .. } if *pid == std::process::id().to_string()));
    assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
    assert!(path.join(PID).exists(), "the loser takes nothing away");
    let other = RunDir::take(&scratch.0.join("ringway/wg1")).unwrap();
    drop(held);
    assert!(!path.exists() && other.path.exists(), "the other goes on");
    drop(other);
    assert!(!scratch.0.join("ringway").exists());
}

#[test]
fn what_a_killed_process_left_is_taken_over() {
    let scratch = Scratch::new("killed");
    let path = scratch.0.join("wg0");
    fs::create_dir(&path).unwrap();
    fs::write(path.join(PID), "4711\n").unwrap();
    fs::write(path.join("changed"), "x").unwrap();
    let dir = RunDir::take(&path).unwrap();
    assert_eq!(dir.predecessor(), Some("4711"));
    assert_eq!(fs::read_to_string(path.join(PID)).unwrap().trim(), std::process::id().to_string());
    drop(dir);
    assert!(!path.exists());
}

/// Somebody who opened the file just before its holder took it away gets a lock that nobody else sees.
#[test]
fn a_lock_on_a_file_that_is_gone_is_none() {
    let scratch = Scratch::new("gone");
    let path = scratch.0.join("ringway/wg0");
    let held = RunDir::take(&path).unwrap();
    let late = || open_lock(&path).unwrap().unwrap();
    assert!(matches!(RunDir::claim(&path, late()), Err(HomeError::Running { .. })));
    let [removed, replaced] = [late(), late()];
    drop(held);
    assert!(try_lock(&removed).unwrap(), "the kernel has no objection");
    assert!(RunDir::claim(&path, removed).unwrap().is_none());
    let next = RunDir::take(&path).unwrap();
    assert!(try_lock(&replaced).unwrap());
    assert!(RunDir::claim(&path, replaced).unwrap().is_none());
    drop(next);
    let lock = late();
    assert!(RunDir::claim(&path, lock).unwrap().is_some(), "a file that is there can be had");
}

#[test]
fn a_key_is_made_once_and_is_private() {
    let scratch = Scratch::new("key");
    let path = scratch.0.join("state/wg0/private.key");
    let key = private_key(&path, None).unwrap();
    assert_eq!(PrivateKey::new(&key).to_secret().0, key.0, "clamped");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(private_key(&path, None).unwrap().0, key.0, "the same again");
    let names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["private.key"], "no draft stays");
    let other = private_key(&scratch.0.join("other.key"), None).unwrap();
    assert_ne!(other.0, key.0);
}

#[test]
fn a_credential_goes_before_the_file() {
    let scratch = Scratch::new("credential");
    let text = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let file = scratch.0.join("private.key");
    let credential = scratch.0.join(CREDENTIAL);
    fs::write(&credential, text).unwrap();
    let key = private_key(&file, Some(&scratch.0)).unwrap();
    assert_eq!(key.0, text.parse::<Secret>().unwrap().0);
    assert!(!file.exists());
    fs::write(&credential, "nonsense").unwrap();
    assert!(
        private_key(&file, Some(&scratch.0)).unwrap_err().to_string().contains("private-key holds no key")
    );
    fs::remove_file(&credential).unwrap();
    assert!(private_key(&file, Some(&scratch.0)).is_ok() && file.exists(), "without one the file is made");
}
