// The KV cache in int8, with a float32 scale per head and position.
const SCALED = true;
alias Quad = u32;

fn from_cache(q: Quad) -> vec4<f32> {
  return vec4<f32>(unpack4xI8(q));
}

fn to_cache(v: vec4<f32>) -> Quad {
  return pack4xI8(vec4<i32>(round(v)));
}
