//! A link in another namespace, asked for over the netlink socket of this one: CAP_NET_ADMIN over both is enough, where
//! to enter the other one (setns(2)) would take CAP_SYS_ADMIN.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use futures_util::StreamExt as _;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::{Link, state_of, to_io};
use crate::sys::netns::Namespace;

/// What the kernel calls a namespace without a number.
const UNKNOWN: i32 = -1;

impl Link {
    /// The MTU, bytes, of the link of this name in another namespace.
    ///
    /// # Errors
    /// ENODEV if there is none; EPERM without CAP_NET_ADMIN there.
    pub async fn mtu_in(&self, there: &Namespace, name: String) -> io::Result<u32> {
        let mut request = self.handle.link().get().match_name(name);
        let number = self.number_of(there).await?;
        request.message_mut().attributes.push(LinkAttribute::IfNetnsId(number));
        let mut links = Box::pin(request.execute());
        let link = links.next().await.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(to_io)?;
        state_of(&link, None).map(|state| state.mtu).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The number of a namespace in ours. To move a device there has given it one; if not, it gets one.
    async fn number_of(&self, there: &Namespace) -> io::Result<i32> {
        let of = |number: Option<i32>| {
            let mut message = NsidMessage::default();
            // The kernel has no negative descriptors, so the sign is of no account.
            message.attributes.push(NsidAttribute::Fd(there.as_fd().as_raw_fd().cast_unsigned()));
            message.attributes.extend(number.map(NsidAttribute::Id));
            message
        };
        let get = || RouteNetlinkMessage::GetNsId(of(None));
        match self.ask_number(get(), NLM_F_REQUEST).await? {
            UNKNOWN => {}
            number => return Ok(number),
        }
        let set = RouteNetlinkMessage::NewNsId(of(Some(UNKNOWN)));
        self.ask_number(set, NLM_F_REQUEST | NLM_F_ACK).await?;
        self.ask_number(get(), NLM_F_REQUEST).await
    }

    /// Sends a request about a namespace's number, and returns the one that is answered.
    async fn ask_number(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<i32> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = flags;
        let mut answers = self.handle.clone().request(message).map_err(to_io)?;
        match answers.next().await.ok_or(io::ErrorKind::UnexpectedEof)?.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                let number = answer.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) => Some(*number),
                    _ => None,
                });
                Ok(number.unwrap_or(UNKNOWN))
            }
            // An acknowledgement is an error without a code.
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(UNKNOWN),
        }
    }
}
