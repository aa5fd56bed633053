// Which experts have which places where there is one token: place a is that of the a-th that it chooses.
@group(0) @binding(4) var<storage, read> router_logits: array<f32>;
@group(0) @binding(5) var<storage, read> router_bias: array<f32>;

fn run_of(number: u32, thread: u32) -> vec3<u32> {
  choose(0u, thread);
  return vec3<u32>(chosen_ids[number], number, 1u);
}

fn source_of(place: u32) -> u32 {
  return 0u;
}
