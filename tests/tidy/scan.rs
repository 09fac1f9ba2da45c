//! Reads a Rust file far enough for the checks: code apart from comments and literals, test code apart from the rest,
//! paths, functions. No parser: what it cannot know (paths made by macros, say) it does not see.

use std::ops::Range;

/// A file, cut up. All offsets are byte offsets that `text` and `code` share.
pub(crate) struct Source {
    /// Relative to the repository, with `/`.
    pub(crate) path: String,
    /// As it stands.
    pub(crate) text: String,
    /// `text` with comments and the insides of literals blanked; same length, same lines, ASCII.
    pub(crate) code: String,
    /// String literals without their quotes.
    pub(crate) strings: Vec<(usize, String)>,
    /// Comments with their slashes, one entry per line.
    pub(crate) comments: Vec<(usize, String)>,
    /// Items under `#[cfg(test)]`.
    pub(crate) tests: Vec<Range<usize>>,
}

impl Source {
    pub(crate) fn new(path: String, text: String) -> Self {
        let mut lexer =
            Lexer { text: text.as_bytes(), at: 0, code: Vec::new(), strings: vec![], comments: vec![] };
        lexer.run();
        let Lexer { code, strings, comments, .. } = lexer;
        let code: String =
            code.into_iter().map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' }).collect();
        let tests = test_items(&code);
        Self { path, text, code, strings, comments, tests }
    }

    pub(crate) fn line_of(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count()
    }

    pub(crate) fn is_test(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// Where `word` stands in the code as a whole word.
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        words(&self.code, word)
    }

    /// The modules that `mod name;` lines declare, and whether only for tests.
    pub(crate) fn declared_modules(&self) -> Vec<(String, bool)> {
        let declared = |at: usize| {
            let (name, after) = ident(&self.code, skip_space(&self.code, at + 3))?;
            let ends = self.code[skip_space(&self.code, after)..].starts_with(';');
            ends.then(|| (name.to_owned(), self.is_test(at)))
        };
        self.words("mod").filter_map(declared).collect()
    }

    /// Every function: its name, offset and length in lines.
    pub(crate) fn functions(&self) -> Vec<(String, usize, usize)> {
        let function = |at: usize| {
            let (name, after) = ident(&self.code, skip_space(&self.code, at + 2))?;
            let end = item_end(&self.code, after);
            Some((name.to_owned(), at, self.line_of(end) + 1 - self.line_of(at)))
        };
        self.words("fn").filter_map(function).collect()
    }

    /// Paths within the crate that code other than tests names, from the crate's root on: `crate::…` and `super::…`,
    /// groups taken apart. `module` is this file's own path.
    pub(crate) fn crate_paths(&self, module: &[String]) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        for root in ["crate", "super", "ringway"] {
            for at in self.words(root).filter(|&at| !self.is_test(at)) {
                let inside = self.code[..at].trim_end().ends_with("::");
                let (base, after) = match root {
                    "super" => match self.supers(at, module) {
                        Some(base) => base,
                        None => continue,
                    },
                    _ => (Vec::new(), at + root.len()),
                };
                if inside || !self.code[skip_space(&self.code, after)..].starts_with("::") {
                    continue;
                }
                let mut paths = Vec::new();
                tree(&self.code, skip_space(&self.code, after) + 2, base, &mut paths);
                found.extend(paths.into_iter().map(|path| (at, path)));
            }
        }
        found
    }

    /// Follows `super::super` up from `module`; `None` beyond the root (inside an inline module).
    fn supers(&self, mut at: usize, module: &[String]) -> Option<(Vec<String>, usize)> {
        let mut base = module.to_vec();
        loop {
            base.pop()?;
            at += "super".len();
            let next = skip_space(&self.code, at);
            let again = skip_space(&self.code, next + 2);
            if !self.code[next..].starts_with("::")
                || ident(&self.code, again).is_none_or(|(word, _)| word != "super")
            {
                return Some((base, at));
            }
            at = again;
        }
    }
}

/// Takes a use tree apart; returns where it ends.
fn tree(code: &str, at: usize, mut prefix: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let at = skip_space(code, at);
    if code[at..].starts_with('{') {
        let mut at = at + 1;
        loop {
            at = skip_space(code, at);
            if code[at..].starts_with('}') {
                return at + 1;
            }
            at = tree(code, at, prefix.clone(), found);
            // `as name` and the comma.
            match code[at..].find([',', '}']) {
                Some(n) if code[at + n..].starts_with(',') => at += n + 1,
                Some(n) => return at + n + 1,
                None => return code.len(),
            }
        }
    }
    let Some((name, after)) = ident(code, at) else {
        found.push(prefix);
        return at;
    };
    prefix.push(name.to_owned());
    let next = skip_space(code, after);
    if code[next..].starts_with("::") {
        return tree(code, next + 2, prefix, found);
    }
    found.push(prefix);
    after
}

fn is_ident(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let bounded = move |at: usize| {
        let before = at.checked_sub(1).is_none_or(|n| !is_ident(bytes[n]));
        before && bytes.get(at + word.len()).is_none_or(|&byte| !is_ident(byte))
    };
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| bounded(at))
}

fn skip_space(code: &str, at: usize) -> usize {
    at + code[at..].len() - code[at..].trim_start().len()
}

fn ident(code: &str, at: usize) -> Option<(&str, usize)> {
    let len = code[at..].bytes().take_while(|&byte| is_ident(byte)).count();
    (len > 0).then(|| (&code[at..at + len], at + len))
}

/// Where the item that `at` is in ends: at the brace that closes its body, or at its semicolon.
fn item_end(code: &str, at: usize) -> usize {
    let (mut depth, mut braces) = (0_i32, 0_i32);
    for (n, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces <= 0 && depth <= 0 {
                    return n;
                }
            }
            b';' if braces == 0 && depth <= 0 => return n,
            _ => {}
        }
    }
    code.len().saturating_sub(1)
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    let attributes = code.match_indices("#[cfg(test").chain(code.match_indices("#[cfg(all(test"));
    let item = |(at, _): (usize, &str)| {
        let after = at + code[at..].find(']').map_or(0, |n| n + 1);
        at..item_end(code, after) + 1
    };
    attributes.map(item).collect()
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    code: Vec<u8>,
    strings: Vec<(usize, String)>,
    comments: Vec<(usize, String)>,
}

impl Lexer<'_> {
    fn run(&mut self) {
        while let Some(&byte) = self.text.get(self.at) {
            let rest = &self.text[self.at..];
            if rest.starts_with(b"//") {
                let len = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
                self.comment(len);
            } else if rest.starts_with(b"/*") {
                self.comment(block_comment(rest));
            } else if let Some(open) = self.raw_string(rest) {
                let hashes = open - 2;
                let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
                let body = rest[open..].windows(close.len()).position(|tail| tail == close);
                self.string(open, body.unwrap_or(rest.len() - open), close.len());
            } else if byte == b'"' {
                let body = string_body(&rest[1..]);
                self.string(1, body, 1);
            } else if byte == b'\'' {
                let len = char_literal(rest);
                self.blank(len);
            } else {
                self.code.push(byte);
                self.at += 1;
            }
        }
    }

    /// The length of `r##"` if one begins here.
    fn raw_string(&self, rest: &[u8]) -> Option<usize> {
        let inside_word =
            self.code.last().is_some_and(|&byte| is_ident(byte) && byte != b'b' && byte != b'c');
        let tail = rest.strip_prefix(b"r").filter(|_| !inside_word)?;
        let hashes = tail.iter().take_while(|&&byte| byte == b'#').count();
        (tail.get(hashes) == Some(&b'"')).then_some(hashes + 2)
    }

    fn string(&mut self, open: usize, body: usize, close: usize) {
        let inside = self.text.get(self.at + open..self.at + open + body).unwrap_or_default();
        self.strings.push((self.at, String::from_utf8_lossy(inside).into_owned()));
        self.blank(open + body + close);
    }

    fn comment(&mut self, len: usize) {
        let text = String::from_utf8_lossy(&self.text[self.at..self.at + len]).into_owned();
        let mut at = self.at;
        for line in text.split('\n') {
            self.comments.push((at, line.to_owned()));
            at += line.len() + 1;
        }
        self.blank(len);
    }

    fn blank(&mut self, len: usize) {
        let end = (self.at + len.max(1)).min(self.text.len());
        let blanked = self.text[self.at..end].iter().map(|&byte| if byte == b'\n' { byte } else { b' ' });
        self.code.extend(blanked);
        self.at = end;
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string_body(rest: &[u8]) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character literal, or 1 for the tick of a lifetime.
fn char_literal(rest: &[u8]) -> usize {
    let tail = &rest[1..];
    if tail.first() == Some(&b'\\') {
        return 2 + 1 + tail.iter().skip(2).position(|&byte| byte == b'\'').map_or(0, |n| n + 1);
    }
    let first = tail.first().map_or(1, |&byte| match byte {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    });
    if tail.get(first) == Some(&b'\'') { first + 2 } else { 1 }
}
