mod behaviour;
mod fleet;
mod sim;
