//! Devices that a guest finds by its ACPI tables.

pub mod generation;
pub mod watchdog;
