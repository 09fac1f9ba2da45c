//! This host's network as the control thread sees and changes it: interface names, links, routes.

pub mod link;
pub mod name;
