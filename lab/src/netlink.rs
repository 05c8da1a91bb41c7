//! `ipvsadm` commands without the process: the same requests over generic netlink. In the guest a process costs
//! fifteen milliseconds of the host's time and a request next to nothing.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const SET_CONFIG: u8 = 12;

const ACKNOWLEDGE: u16 = 1 | 4;
const NESTED: u16 = 0x8000;

/// A socket to IPVS.
#[derive(Debug)]
pub struct Rules {
    socket: OwnedFd,
    family: u16,
}

/// A command, taken apart.
struct Command {
    what: u8,
    attributes: Vec<u8>,
}

impl Rules {
    /// Opens the socket and asks for the number of the family.
    pub fn open() -> Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )
        .context("no netlink socket")?;
        let name = attribute(FAMILY_NAME, b"IPVS\0");
        let answer = ask(&socket, CONTROLLER, 1, GET_FAMILY, &name)?;
        // Header of netlink (16) and of generic netlink (4), then attributes.
        let mut rest = answer.get(20..).unwrap_or_default();
        while let [l0, l1, t0, t1, ..] = *rest {
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            if u16::from_ne_bytes([t0, t1]) == FAMILY_ID
                && let Some([a, b]) = rest.get(4..6)
            {
                let family = u16::from_ne_bytes([*a, *b]);
                return Ok(Self { socket, family });
            }
            rest = rest
                .get(length.max(4).next_multiple_of(4)..)
                .unwrap_or_default();
        }
        bail!("the kernel has no IPVS")
    }

    /// Does what `ipvsadm` with these arguments would do.
    ///
    /// # Errors
    /// If the arguments are not understood, or the kernel refuses.
    pub fn run(&self, arguments: &str) -> Result<()> {
        let command = parse(arguments).with_context(|| format!("`ipvsadm {arguments}`"))?;
        let answer = ask(
            &self.socket,
            self.family,
            ACKNOWLEDGE,
            command.what,
            &command.attributes,
        )?;
        match answer.get(16..20) {
            Some([0, 0, 0, 0]) => Ok(()),
            Some(code) => {
                let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
                let error = std::io::Error::from_raw_os_error(-code);
                bail!("the kernel refuses `ipvsadm {arguments}`: {error}")
            }
            None => bail!("no answer to `ipvsadm {arguments}`"),
        }
    }
}

fn ask(socket: &OwnedFd, family: u16, flags: u16, command: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut message = Vec::with_capacity(20 + body.len());
    message.extend((20 + body.len() as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((flags | 1).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(body);
    send(socket, &message, SendFlags::empty()).context("netlink does not take the request")?;
    let mut answer = vec![0; 8192];
    let (length, _) =
        recv(socket, &mut answer[..], RecvFlags::empty()).context("no answer of netlink")?;
    answer.truncate(length);
    Ok(answer)
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len() as u16;
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn address(kind: u16, ip: Ipv4Addr) -> Vec<u8> {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&ip.octets());
    attribute(kind, &bytes)
}

fn parse(arguments: &str) -> Result<Command> {
    let mut words = arguments.split_whitespace();
    let verb = words.next().unwrap_or_default();
    if verb == "--set" {
        let mut attributes = Vec::new();
        for kind in 4..=6 {
            let seconds: u32 = words.next().context("--set needs three numbers")?.parse()?;
            attributes.extend(attribute(kind, &seconds.to_ne_bytes()));
        }
        return Ok(Command {
            what: SET_CONFIG,
            attributes,
        });
    }
    let what = match verb {
        "-A" => NEW_SERVICE,
        "-E" => SET_SERVICE,
        "-D" => DEL_SERVICE,
        "-a" => NEW_DEST,
        "-e" => SET_DEST,
        "-d" => DEL_DEST,
        other => bail!("the lab does not know {other}"),
    };
    let (mut service, mut extra, mut dest) = (Vec::new(), ServiceOptions::default(), Vec::new());
    let mut weight = 1_u32;
    while let Some(option) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{option} needs a value"))
        };
        match option {
            "-t" | "-u" => {
                let at: SocketAddrV4 = value()?.parse()?;
                let protocol: u16 = if option == "-t" { 6 } else { 17 };
                service.extend(attribute(1, &2_u16.to_ne_bytes()));
                service.extend(attribute(2, &protocol.to_ne_bytes()));
                service.extend(address(3, *at.ip()));
                service.extend(attribute(4, &at.port().to_be_bytes()));
            }
            "-s" => extra.scheduler = value()?.to_owned(),
            "-b" => {
                for flag in value()?.split(',') {
                    extra.flags |= match flag {
                        "sh-fallback" | "mh-fallback" => 0x08,
                        "sh-port" | "mh-port" => 0x10,
                        other => bail!("the lab does not know the flag {other}"),
                    };
                }
            }
            "-p" => {
                extra.timeout = value()?.parse()?;
                extra.flags |= 1;
            }
            "-r" => {
                let at: SocketAddrV4 = value()?.parse()?;
                dest.extend(address(1, *at.ip()));
                dest.extend(attribute(2, &at.port().to_be_bytes()));
                dest.extend(attribute(11, &2_u16.to_ne_bytes()));
            }
            "-m" => {}
            "-w" => weight = value()?.parse()?,
            other => bail!("the lab does not know {other}"),
        }
    }
    if matches!(what, NEW_SERVICE | SET_SERVICE) {
        service.extend(extra.attributes());
    }
    if matches!(what, NEW_DEST | SET_DEST) {
        // Masquerading is method 0; no thresholds.
        for (kind, number) in [(3, 0), (4, weight), (5, 0), (6, 0)] {
            dest.extend(attribute(kind, &number.to_ne_bytes()));
        }
    }
    let mut attributes = attribute(1 | NESTED, &service);
    if !dest.is_empty() {
        attributes.extend(attribute(2 | NESTED, &dest));
    }
    Ok(Command { what, attributes })
}

struct ServiceOptions {
    scheduler: String,
    flags: u32,
    timeout: u32,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            scheduler: "wlc".to_owned(),
            flags: 0,
            timeout: 0,
        }
    }
}

impl ServiceOptions {
    fn attributes(&self) -> Vec<u8> {
        let mut name = self.scheduler.clone().into_bytes();
        name.push(0);
        let mut flags = self.flags.to_ne_bytes().to_vec();
        flags.extend(u32::MAX.to_ne_bytes());
        let mut bytes = attribute(6, &name);
        bytes.extend(attribute(7, &flags));
        bytes.extend(attribute(8, &self.timeout.to_ne_bytes()));
        bytes.extend(attribute(9, &u32::MAX.to_ne_bytes()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        assert_eq!(attribute(6, b"rr\0"), [7, 0, 6, 0, b'r', b'r', 0, 0]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(parse("-A -t 10.0.0.1:80 -s rr --ops").is_err());
        assert!(parse("-t 10.0.0.1:80").is_err());
        assert!(parse("--set 1 2").is_err());
        assert!(parse("-d -t 10.20.79.226:31199 -r 10.27.1.10:80").is_ok());
    }
}
