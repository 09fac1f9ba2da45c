//! This host's network as the control thread sees and changes it: interface names, links, routes, kernel parameters,
//! and the rules that a gateway brings along.

pub mod dns;
pub mod echo;
pub mod guard;
pub mod link;
pub mod lookup;
pub mod manners;
pub mod monitor;
pub mod name;
pub mod nft;
pub mod route;
pub mod sysctl;
