//! The lines of the files that wg-quick(8) reads, which profiles and the files of other servers are written in.

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Nothing to wg-quick: what follows `#`.
    Comment(&'a str),
    /// Settings of what follows.
    Section(Section),
    /// `KEY = VALUE`
    Setting {
        /// As it stands there, but its case says nothing.
        key: &'a str,
        /// Without space around it.
        value: &'a str,
    },
}

/// What settings are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `[Interface]`
    Interface,
    /// `[Peer]`
    Peer,
}

/// Every line that is not empty, with its number, counted from 1.
///
/// # Errors
/// Of a line: what is wrong with it.
pub fn lines(text: &str) -> impl Iterator<Item = (usize, Result<Line<'_>, String>)> {
    (1..).zip(text.lines()).filter_map(|(number, line)| Some((number, read(line)?)))
}

fn read(line: &str) -> Option<Result<Line<'_>, String>> {
    let (said, comment) =
        line.split_once('#').map_or((line, None), |(said, comment)| (said, Some(comment.trim_end())));
    let said = said.trim();
    if said.is_empty() {
        return Some(Ok(Line::Comment(comment?)));
    }
    if said.starts_with('[') {
        return Some(match said.to_ascii_lowercase().as_str() {
            "[interface]" => Ok(Line::Section(Section::Interface)),
            "[peer]" => Ok(Line::Section(Section::Peer)),
            _ => Err(format!("{said} is no section: [Interface] and [Peer] are")),
        });
    }
    let setting =
        said.split_once('=').map(|(key, value)| Line::Setting { key: key.trim(), value: value.trim() });
    Some(setting.ok_or_else(|| "neither a section nor KEY = VALUE".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line() {
        let text = "# a\n\n [interface] # b\nPrivateKey= a=b= # c\n\t#\n[PEER]\nx\n[c]";
        let setting = Line::Setting { key: "PrivateKey", value: "a=b=" };
        let found: Vec<_> = lines(text).collect();
        let wanted = [
            (1, Line::Comment(" a")),
            (3, Line::Section(Section::Interface)),
            (4, setting),
            (5, Line::Comment("")),
            (6, Line::Section(Section::Peer)),
        ];
        for (found, (number, line)) in found.iter().zip(wanted) {
            assert_eq!(*found, (number, Ok(line)));
        }
        let wrong: Vec<_> = found[5..].iter().map(|(number, line)| (*number, line.is_err())).collect();
        assert_eq!(wrong, [(7, true), (8, true)]);
    }
}
