// The KV cache in float32.
const SCALED = false;
alias Quad = vec4<f32>;

fn from_cache(q: Quad) -> vec4<f32> {
  return q;
}

fn to_cache(v: vec4<f32>) -> Quad {
  return v;
}

fn key_from_cache(q: Quad, low: u32) -> vec4<f32> {
  return from_cache(q);
}

fn key_to_cache(code: vec4<i32>) -> Quad {
  return to_cache(vec4<f32>(code));
}
