//! Packet files: pcap with microseconds or nanoseconds in either byte order, and pcapng. Streaming: one
//! packet in memory at a time, whatever the file's size.

use std::io::Read;
use std::sync::Arc;

use ipvs_model::time::NANOS_PER_SEC;
use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, PcapBlockOwned, PcapError};

use super::packet::{Content, Packet, decode, link};
use super::place::{Place, ReadError, Skipped, Stamp};

/// The first word of a pcap file with nanosecond timestamps.
pub const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
/// The buffer to begin with: holds any packet of the usual snapshot length of 256 KiB.
const BUFFER: usize = 1 << 20;
/// How a file is counted that ends within a packet.
pub(super) const BROKEN_OFF: &str = "last packet broken off";
/// No packet or block is larger: a length beyond this is a damaged file.
const BLOCK_MAX: usize = 16 << 20;

/// An interface of a pcapng section, or the only one of a pcap file.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    /// Ticks a second of the timestamps.
    resolution: u64,
    offset_s: i64,
}

/// Reads a packet file from its beginning to its end.
pub struct Packets<'r> {
    file: Arc<str>,
    reader: Option<Box<dyn PcapReaderIterator + Send + 'r>>,
    interfaces: Vec<Interface>,
    legacy: bool,
    buffer: usize,
    number: u64,
    skipped: Skipped,
}

/// Fills the buffer as far as the file goes: the parser takes a short read for the file's end.
struct Filling<R>(R);

impl<R: Read> Read for Filling<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// What a step through the file gave.
enum Step {
    Packet(Packet),
    Nothing,
    Refill,
    Grow,
    BrokenOff,
    End,
}

impl<'r> Packets<'r> {
    /// Opens the file named `file`. An empty file has no packets.
    ///
    /// # Errors
    /// If it is neither pcap nor pcapng, or cannot be read.
    pub fn new(file: Arc<str>, reader: impl Read + Send + 'r) -> Result<Self, ReadError> {
        let mut packets = Self {
            file,
            reader: None,
            interfaces: Vec::new(),
            legacy: false,
            buffer: BUFFER,
            number: 0,
            skipped: Skipped::default(),
        };
        match pcap_parser::create_reader(BUFFER, Filling(reader)) {
            Ok(reader) => packets.reader = Some(reader),
            Err(PcapError::Eof) => {}
            Err(PcapError::ReadError) => return Err(packets.error("cannot be read")),
            Err(PcapError::Incomplete(_)) => {
                return Err(packets.error("the file breaks off in its first header"));
            }
            Err(_) => return Err(packets.error("is neither pcap nor pcapng")),
        }
        Ok(packets)
    }

    /// The file's name.
    pub fn file(&self) -> Arc<str> {
        self.file.clone()
    }

    /// What was read past so far.
    pub const fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The next packet, or `None` at the end. A packet that breaks off at the end is counted and left out.
    ///
    /// # Errors
    /// If the file is damaged before its end.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, ReadError> {
        loop {
            match self.step()? {
                Step::Packet(packet) => {
                    if let Content::Skipped(why) = packet.content {
                        self.skipped
                            .count(&self.file, why, Place::Packet(packet.number));
                    }
                    return Ok(Some(packet));
                }
                Step::Nothing => {}
                Step::Refill => self.refill()?,
                Step::Grow => {
                    self.buffer *= 2;
                    if self.buffer > BLOCK_MAX {
                        return Err(self.error("a packet longer than 16 MiB: the file is damaged"));
                    }
                    if let Some(reader) = &mut self.reader {
                        reader.grow(self.buffer);
                    }
                    self.refill()?;
                }
                Step::BrokenOff | Step::End => {
                    self.reader = None;
                    return Ok(None);
                }
            }
        }
    }

    fn error(&self, reason: impl Into<String>) -> ReadError {
        let place = match self.number {
            0 => Place::File,
            number => Place::Packet(number + 1),
        };
        ReadError::new(&self.file, place, reason)
    }

    fn refill(&mut self) -> Result<(), ReadError> {
        let failed = self.reader.as_mut().is_some_and(|r| r.refill().is_err());
        if failed {
            return Err(self.error("cannot be read"));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Step, ReadError> {
        let Some(mut reader) = self.reader.take() else {
            return Ok(Step::End);
        };
        let step = match reader.next() {
            Ok((size, block)) => {
                let step = self.block(&block);
                drop(block);
                reader.consume(size);
                Some(step)
            }
            Err(PcapError::Eof) => Some(Step::End),
            Err(PcapError::Incomplete(_)) => Some(Step::Refill),
            Err(PcapError::BufferTooSmall) => Some(Step::Grow),
            Err(PcapError::UnexpectedEof) => Some(Step::BrokenOff),
            Err(_) => None,
        };
        let step = match step {
            Some(Step::BrokenOff) if self.impossible(reader.data()) => None,
            Some(Step::BrokenOff) => {
                let place = Place::Packet(self.number + 1);
                self.skipped.count(&self.file, BROKEN_OFF, place);
                Some(Step::End)
            }
            step => step,
        };
        self.reader = Some(reader);
        step.ok_or_else(|| self.error("damaged: what stands here is no packet"))
    }

    /// Whether the record at the file's end claims a length that no record has, in either byte order: then
    /// the file did not break off here, it is damaged, and packets behind would be lost silently.
    fn impossible(&self, data: &[u8]) -> bool {
        let at = if self.legacy { 8 } else { 4 };
        let word = data.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map(u32::from_le_bytes)
            .is_some_and(|len| len.min(len.swap_bytes()) as usize > BLOCK_MAX)
    }

    fn block(&mut self, block: &PcapBlockOwned<'_>) -> Step {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let fine = header.is_nanosecond_precision();
                self.legacy = true;
                self.interfaces = vec![Interface {
                    link: header.network.0 as u32 & 0x0fff_ffff,
                    resolution: if fine { NANOS_PER_SEC } else { 1_000_000 },
                    offset_s: 0,
                }];
                Step::Nothing
            }
            PcapBlockOwned::Legacy(packet) => {
                let fine = self.interfaces.first().map_or(1_000_000, |i| i.resolution);
                let scale = NANOS_PER_SEC / fine.max(1);
                let nanos =
                    u64::from(packet.ts_sec) * NANOS_PER_SEC + u64::from(packet.ts_usec) * scale;
                self.packet(0, Some(Stamp(nanos)), packet.data)
            }
            PcapBlockOwned::NG(block) => self.ng_block(block),
        }
    }

    fn ng_block(&mut self, block: &Block<'_>) -> Step {
        match block {
            Block::SectionHeader(_) => {
                self.interfaces.clear();
                Step::Nothing
            }
            Block::InterfaceDescription(described) => {
                self.interfaces.push(Interface {
                    link: described.linktype.0 as u32,
                    resolution: described.ts_resolution().unwrap_or(1_000_000).max(1),
                    offset_s: described.ts_offset(),
                });
                Step::Nothing
            }
            Block::EnhancedPacket(packet) => {
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let interface = self.interfaces.get(packet.if_id as usize).copied();
                let at = interface.and_then(|i| i.stamp(ticks));
                let len = (packet.caplen as usize).min(packet.data.len());
                self.packet(packet.if_id, at, &packet.data[..len])
            }
            Block::SimplePacket(packet) => {
                let len = (packet.origlen as usize).min(packet.data.len());
                self.packet(0, None, &packet.data[..len])
            }
            _ => Step::Nothing,
        }
    }

    fn packet(&mut self, interface: u32, at: Option<Stamp>, data: &[u8]) -> Step {
        self.number += 1;
        let place = Place::Packet(self.number);
        let Some(link) = self.interfaces.get(interface as usize).map(|i| i.link) else {
            let why = "packet of an interface that the file does not describe";
            self.skipped.count(&self.file, why, place);
            return Step::Nothing;
        };
        let Some(at) = at else {
            self.skipped
                .count(&self.file, "packet without a time", place);
            return Step::Nothing;
        };
        let mut packet = decode(at, self.number, link, data);
        if self.interfaces.len() > 1 {
            packet.interface = packet.interface.or(Some(interface));
        }
        debug_assert!(link::known(link) || matches!(packet.content, Content::Skipped(_)));
        Step::Packet(packet)
    }
}

impl Interface {
    fn stamp(self, ticks: u64) -> Option<Stamp> {
        let nanos = u128::from(ticks) * u128::from(NANOS_PER_SEC) / u128::from(self.resolution);
        let offset = i128::from(self.offset_s) * i128::from(NANOS_PER_SEC);
        let nanos = i128::try_from(nanos).ok()?.checked_add(offset)?;
        u64::try_from(nanos).ok().map(Stamp)
    }
}
