//! Security predicates under test: each goes through [`holds`], which says what it is told, except in a test run
//! that was asked to break the one predicate that `RINGWAY_MUTANT` names.
//!
//! A check that is wrong in the permissive direction breaks nothing that a user sees and may survive years of
//! fuzzing. So the tests themselves are tested: every predicate is broken in each of three ways, one at a time, and
//! a test that is named beside it must notice. Outside test builds nothing of this is left.

/// `verdict`, the outcome of the security predicate `name`; `name` stands in the table of this module's tests.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn holds(_name: &'static str, verdict: bool) -> bool {
    verdict
}

/// As above, unless `name` is the predicate to break.
#[cfg(test)]
pub(crate) fn holds(name: &'static str, verdict: bool) -> bool {
    tests::mutant().filter(|mutant| mutant.name == name).map_or(verdict, |mutant| mutant.verdict(verdict))
}

#[cfg(test)]
mod tests;
