// Which experts have which places, as sort.wgsl left it.
@group(0) @binding(4) var<storage, read> runs: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> sources: array<u32>;

fn run_of(number: u32, thread: u32) -> vec3<u32> {
  return runs[number].xyz;
}

fn source_of(place: u32) -> u32 {
  return sources[place];
}
