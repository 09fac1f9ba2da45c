//! The kernel under valgrind, with keys and texts marked as undefined: memcheck then reports every branch and every
//! address that depends on them.
//!
//! valgrind knows AVX2, not AVX-512; the source is the same but for the vectors. Limbs of 44 bits, which no vector of
//! AVX2 multiplies, run over plain numbers.

use std::hint::black_box;
use std::process::{Command, Output};

use super::*;

/// Names the secret that [`inner`] is to branch on by intention.
const PLANT: &str = "RINGWAY_PLANT";

/// memcheck's requests (memcheck.h: 'M', 'C' in the upper half) and valgrind's own.
const MAKE_UNDEFINED: u64 = 0x4d43_0001;
const MAKE_DEFINED: u64 = 0x4d43_0002;
const RUNNING_ON_VALGRIND: u64 = 0x1001;

/// Asks valgrind for something about the bytes of `about`. Elsewhere the answer is 0.
fn request<T: ?Sized>(code: u64, about: &T) -> u64 {
    let (address, len) =
        (std::ptr::from_ref(about).cast::<u8>().expose_provenance() as u64, size_of_val(about) as u64);
    let arguments = [code, address, len, 0, 0, 0];
    let mut answer = 0_u64;
    // SAFETY: turns rdi by 128 bits in all and exchanges rbx with itself, which changes neither; valgrind, which
    // translates what it runs, knows these instructions as a call to it and reads the array that rax points to.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") arguments.as_ptr(), inout("rdx") answer, options(nostack),
        );
    }
    answer
}

fn mark(code: u64, texts: &[Vec<u8>]) {
    for text in texts {
        request(code, &text[..]);
    }
}

fn instances() -> Vec<Instance> {
    type Unchecked = Plain<false>;
    let mut all = vec![instance::<Unchecked, Radix44<Unchecked>>("plain numbers")];
    #[cfg(target_arch = "x86_64")]
    all.extend(x86::instances().into_iter().filter(|instance| ["avx2", "brief"].contains(&instance.name)));
    all
}

/// Does by intention what no kernel may do.
fn plant(keys: &[[u8; 32]], tags: &Tags, given: &Tags) {
    let secret = black_box(keys)[0][0];
    match std::env::var(PLANT).as_deref() {
        Ok("branch") if secret & 1 == 1 => drop(black_box(vec![0])),
        Ok("address") => assert_eq!(black_box(&[1_u8; 256])[usize::from(secret)], 1),
        Ok("verdict") => assert!(black_box(tags) == given),
        _ => {}
    }
}

#[test]
#[ignore = "inner: run by no_branch_and_no_address_depends_on_a_secret under valgrind"]
fn inner() {
    assert_ne!(request(RUNNING_ON_VALGRIND, &()), 0, "this test is for valgrind");
    let mut noise = Noise(5);
    for Instance { name, lanes, longest: most, seal, open, .. } in instances() {
        for longest in [0, 1, 64, most.min(200)] {
            let keys: Vec<_> = (0..lanes).map(|_| noise.key()).collect();
            let plain: Vec<_> = (0..lanes).map(|lane| noise.bytes(longest * (lane + 1) / lanes)).collect();
            let mut texts = plain.clone();
            let call = |work: Work, texts: &mut [Vec<u8>]| {
                let packets = texts.iter_mut().zip(&keys);
                let mut packets: Vec<_> =
                    packets.map(|(text, key)| Packet { key, counter: 7, text }).collect();
                let mut tags = Tags::default();
                work(&mut packets, &mut tags);
                tags
            };
            request(MAKE_UNDEFINED, &keys[..]);
            mark(MAKE_UNDEFINED, &texts);
            let given = call(seal, &mut texts);
            // Ciphertext and tag go over the wire.
            mark(MAKE_DEFINED, &texts);
            request(MAKE_DEFINED, &given);
            let sealed = (texts.clone(), given);
            let tags = call(open, &mut texts);
            let verdicts = verdicts(&tags, &given, lanes);
            plant(&keys, &tags, &given);
            // What came out is looked at from here on.
            request(MAKE_DEFINED, &verdicts);
            mark(MAKE_DEFINED, &texts);
            request(MAKE_DEFINED, &keys[..]);
            assert!(verdicts[..lanes].iter().all(|verdict| bool::from(*verdict)), "{name}");
            assert!(texts == plain, "{name}");
            for (lane, text) in plain.iter().enumerate() {
                let right = by_library(&keys[lane], 7, text);
                assert!(right == (sealed.0[lane].clone(), sealed.1[lane]), "{name}, lane {lane}");
            }
        }
    }
    let pairs = [0; 2].map(|_| (points::clamped(noise.key()), noise.key()));
    request(MAKE_UNDEFINED, &pairs);
    let mut products = x25519::Products::default();
    let given = [(&pairs[0].0, &pairs[0].1), (&pairs[1].0, &pairs[1].1)];
    x25519::run::<Plain<false>>(&given, x25519::BITS, &mut products);
    request(MAKE_DEFINED, &pairs);
    request(MAKE_DEFINED, &*products);
    for ((scalar, point), product) in pairs.iter().zip(&*products) {
        assert!(*product == points::by_library(scalar, point), "X25519");
    }
}

fn under_valgrind(plant: Option<&str>) -> std::io::Result<Output> {
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=9", "--leak-check=no", "--run-libc-freeres=no"]);
    command.arg(std::env::current_exe()?);
    command.args(["--exact", "crypto::lanes::tests::poisoned::inner", "--ignored", "--test-threads=1"]);
    command.env_remove(PLANT).envs(plant.map(|plant| (PLANT, plant))).output()
}

#[test]
fn no_branch_and_no_address_depends_on_a_secret() {
    let Ok(output) = under_valgrind(None) else {
        eprintln!("RINGWAY-SKIPPED no_branch_and_no_address_depends_on_a_secret: no valgrind (make deps)");
        return;
    };
    let said = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let text = said(&output);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    for (plant, report) in [
        ("branch", "depends on uninitialised value"),
        ("address", "Use of uninitialised value"),
        ("verdict", "depends on uninitialised value"),
    ] {
        let output = under_valgrind(Some(plant)).unwrap();
        let text = said(&output);
        assert!(output.status.code() == Some(9) && text.contains(report), "{plant} was not noticed: {text}");
    }
}
