// A token's experts: the ACTIVE largest of logits + bias, in falling order, and their softmax. Of equals, the
// lower expert comes first. An expert's rank is how many come before it, so that two barriers are enough: then
// every workgroup of a lone token's products chooses for itself, which costs less than another dispatch.
var<workgroup> choices: array<f32, EXPERTS>;
var<workgroup> chosen_ids: array<u32, ACTIVE>;
var<workgroup> chosen_logits: array<f32, ACTIVE>;

// By all threads of a workgroup. first: where the token's are in router_logits.
fn choose(first: u32, thread: u32) {
  for (var e = thread; e < EXPERTS; e += THREADS) {
    choices[e] = router_logits[first + e] + router_bias[e];
  }
  workgroupBarrier();
  for (var e = thread; e < EXPERTS; e += THREADS) {
    let its = choices[e];
    var rank = 0u;
    for (var other = 0u; other < EXPERTS; other++) {
      let value = choices[other];
      rank += u32(value > its || (value == its && other < e));
    }
    if (rank < ACTIVE) {
      chosen_ids[rank] = e;
      chosen_logits[rank] = its;
    }
  }
  workgroupBarrier();
}

fn chosen_weight(number: u32) -> f32 {
  var total = 0.0;
  for (var a = 0u; a < ACTIVE; a++) {
    total += exp(chosen_logits[a] - chosen_logits[0]);
  }
  return exp(chosen_logits[number] - chosen_logits[0]) / total;
}
