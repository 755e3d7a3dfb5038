//! Marram as its users run it: several real processes, one module for each feature.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod away;
#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod config;
#[cfg(test)]
mod death;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod dns;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod frozen;
#[cfg(test)]
mod full_disk;
#[cfg(test)]
mod health;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod isolated;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod leaves;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod locality;
#[cfg(test)]
mod memory;
#[cfg(all(test, target_arch = "x86_64"))]
mod memory_functions;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod outlier;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod policy_work;
#[cfg(test)]
mod priority;
#[cfg(test)]
mod protocols;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod shares;
#[cfg(test)]
mod smuggling;
#[cfg(test)]
mod store_recovery;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tcp;
#[cfg(test)]
mod tcp_links;
#[cfg(test)]
mod transparent;
#[cfg(test)]
mod udp;
