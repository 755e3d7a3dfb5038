mod cluster;
pub(super) mod forge;
