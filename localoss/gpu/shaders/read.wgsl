// Nothing but reading: each workgroup one row group's codes, as products of a lone token do. What it makes of
// them is of no use, but depends on all of them.
@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;  // a word for each workgroup

var<workgroup> parts: array<vec4<u32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  var all = vec4<u32>(0u);
  for (var i = thread; i < VECTORS; i += 256u) {
    all ^= codes[id.x * VECTORS + i];
  }
  parts[thread] = all;
  for (var half = 128u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (thread < half) {
      parts[thread] ^= parts[thread + half];
    }
  }
  if (thread == 0u) {
    out[id.x] = parts[0].x ^ parts[0].y ^ parts[0].z ^ parts[0].w;
  }
}
