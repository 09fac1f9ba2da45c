//! What words mean.

use super::*;

fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from([&["ringway"], words].concat())
}

#[test]
fn the_command_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn verbs_win() {
    assert!(matches!(parse(&["show"]).unwrap().verb, Some(Verb::Show(_))));
    assert!(matches!(parse(&["genkey"]).unwrap().verb, Some(Verb::Genkey)));
    assert!(matches!(parse(&["pubkey"]).unwrap().verb, Some(Verb::Pubkey)));
    assert!(matches!(parse(&["genpsk"]).unwrap().verb, Some(Verb::Genpsk)));
    assert!(parse(&["show", "--json", "wg0"]).unwrap().verb.is_some());
    assert!(parse(&["show", "--rates", "-i", "wg0", "-i", "wg1"]).unwrap().verb.is_some());
    assert!(matches!(parse(&["top", "--once", "-d", "5"]).unwrap().verb, Some(Verb::Top(_))));
    assert!(matches!(parse(&["doctor", "--port", "7"]).unwrap().verb, Some(Verb::Doctor(_))));
    for words in [["top", "-d", "0"], ["doctor", "--port", "65536"]] {
        assert!(parse(&words).is_err(), "{words:?}");
    }
    assert!(parse(&["show", "a/b"]).is_err());
}

#[test]
fn other_words_are_devices() {
    for (words, foreground) in [
        (vec!["wg0"], false),
        (vec!["-f", "wg0"], true),
        (vec!["--foreground", "wg0"], true),
        (vec!["wg0", "-f"], true),
    ] {
        let cli = parse(&words).unwrap();
        assert!(cli.verb.is_none());
        assert_eq!(
            (cli.device.name.as_deref(), cli.device.foreground),
            (Some("wg0"), foreground),
            "{words:?}"
        );
    }
}

#[test]
fn a_device_says_hello_only_when_it_is_told_to() {
    for (words, hello) in
        [(&["wg0"][..], false), (&["--hello", "wg0"], true), (&["-f", "wg0", "--hello"], true)]
    {
        assert_eq!(parse(words).unwrap().device.hello, hello, "{words:?}");
    }
}

#[test]
fn misuse_is_code_2_and_help_is_code_0() {
    for words in [&[][..], &["-f"], &["wg0", "wg1"], &["--bogus", "wg0"], &["genkey", "x"]] {
        assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
    }
    for words in [["--help"], ["--version"], ["-V"], ["help"]] {
        assert_eq!(parse(&words).unwrap_err().exit_code(), 0, "{words:?}");
    }
    for word in ["shwo", "genkye", "pubky", "hepl", "a/b", "a b", "", ".", "sixteen-bytes-xx"] {
        assert_eq!(interface(word).unwrap_err().exit_code(), 2, "{word}");
    }
    assert!(interface("shwo").unwrap_err().to_string().contains("Did you mean 'show'?"));
    assert!(interface("show").unwrap_err().to_string().contains("is a verb"));
    assert_eq!(interface("wg0").unwrap().as_str(), "wg0");
}
