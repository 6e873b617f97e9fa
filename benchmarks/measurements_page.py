"""The rows of docs/measurements.md: what was measured, how it is shown, and the file of results."""

# What was measured, how it is shown, and the file it comes from.
MEASUREMENTS = {
    "speed": (
        (
            "`score` (4 metrics, 100 permutations, control task, rotated basis) ÷ the bare forward "
            "pass, 320 prompts of 25 tokens: HookedTransformer (8 positions)",
            "**{score_vs_forward:.2f}×** ({score_of_eight_vs_forward:.2f}×)",
            "scoring_hooked",
        ),
        (
            "the same on TransformerBridge",
            "**{score_vs_forward:.2f}×** ({score_of_eight_vs_forward:.2f}×)",
            "scoring_bridge",
        ),
        (
            "the same, 12 tokens, ÷ `run_with_cache`, stack, NumPy with 100 permutations, each "
            "standardised anew",
            "**{score_vs_naive_12_tokens:.1f}×**",
            "scoring_recipes",
        ),
        (
            "÷ the same, standardised once, one matrix product",
            "{score_vs_hoisted_12_tokens:.1f}×",
            "scoring_recipes",
        ),
        (
            "÷ `run_with_cache`, stack, a SciPy loop over neurons without a null",
            "{score_vs_scipy_12_tokens:.1f}×",
            "scoring_recipes",
        ),
        (
            "peak memory of `score` from 1,000 to 8,000 examples; what a stored matrix of "
            "activations would add",
            "{memory_small_mb:,.0f} → {memory_large_mb:,.0f} MB: **{memory_kb_per_example:.1f} "
            "kB** per added example; {memory_matrix_kb_per_example:.0f} kB",
            "memory",
        ),
        (
            "`sweep`, per neuron and example, ÷ a loop of `run_with_hooks` one example at a time; "
            "eight at a time; 32 copies stacked: HookedTransformer",
            "**{sweep_vs_loop_b1:.0f}×**; **{sweep_vs_loop_b8:.0f}×**; **{sweep_vs_stacked:.0f}×**",
            "sweep_loops",
        ),
        (
            "the same on TransformerBridge",
            "{sweep_vs_loop_b1_bridge:.0f}×; {sweep_vs_loop_b8_bridge:.0f}×; "
            "{sweep_vs_stacked_bridge:.0f}×",
            "sweep_loops",
        ),
        (
            "`sweep` against `run_with_hooks`, both implementations: largest difference in "
            "log-probability",
            "{sweep_max_logprob_difference:.0e}; {sweep_max_logprob_difference_bridge:.0e}",
            "sweep_loops",
        ),
        (
            "every neuron of the model, {sweep_whole_neurons:,.0f} × 8 examples; screened by "
            "gradient at 7 %, and how many of the 100 largest effects that holds",
            "{sweep_whole_seconds:,.0f} s; **{sweep_screened_seconds:,.0f} s**, "
            "{sweep_screened_recall:.0%}",
            "sweep_whole",
        ),
        (
            "`preflight` of 300 sums with foils and options ÷ the bare forward pass over their "
            "prompts: HookedTransformer; TransformerBridge",
            "{preflight_vs_forward_hooked:.2f}×; {preflight_vs_forward_bridge:.2f}×",
            "answers_preflight",
        ),
        (
            "`score` of sentence pairs after four demonstrations ÷ the bare forward pass over the "
            "whole prompts: HookedTransformer; TransformerBridge",
            "**{score_vs_forward_shots_hooked:.1f}×**; **{score_vs_forward_shots_bridge:.1f}×**",
            "prefixes_shots",
        ),
        (
            'score(…, precision="bfloat16") ÷ the bare float32 forward pass, on this processor '
            "(bfloat16 instructions, no matrix unit): HookedTransformer; TransformerBridge; of "
            "all neurons 99.9 % moved in r by at most; of the 100 strongest kept",
            "{bfloat16_score_vs_forward_hooked:.2f}×; {bfloat16_score_vs_forward_bridge:.2f}×; "
            "{bfloat16_moved_p999_hooked:.4f}, {bfloat16_moved_p999_bridge:.4f}; "
            "{bfloat16_kept_of_top_100_hooked:.0f}, {bfloat16_kept_of_top_100_bridge:.0f}",
            "precision",
        ),
        (
            "`fit_prompt` ÷ forward and backward over input and prompt at each step, examples/s, "
            "64 inputs of 25 tokens, 8 vectors, 20 steps, everything computed once included",
            "**{train_vs_obvious_b64:.1f}×**; losses differ by {train_max_loss_difference:.0e}; "
            "{train_kept_mb:.0f} MiB of keys and values kept",
            "prompt_train",
        ),
        (
            "`score` at all 8 vectors of a soft prompt (2 metrics, three nulls) ÷ the bare forward "
            "pass over the same 33 tokens, examples/s, 320 examples: eight times the sums",
            "{prompt_score_vs_forward:.2f}×",
            "prompt_score",
        ),
        (
            "explaining 100 neurons on 2,000 examples by {explain_features:.0f} features, 999 "
            "exchanges, beyond one pass that only reads the activations ({capture_seconds:.0f} s)",
            "**{explain_beyond_capture_seconds:.0f} s**",
            "explaining_time",
        ),
        (
            "the circuit of a neuron, {circuit_pairs:.0f} pairs, "
            "{circuit_L28N907_attribution_edges:.0f} edges tested: L28N907; L27N1010",
            "**{circuit_L28N907_attribution_seconds:.0f} s**; "
            "{circuit_L27N1010_attribution_seconds:.0f} s",
            "circuit",
        ),
        (
            "{rows:,.0f} HANS rows, every neuron at {positions:.0f} prompt positions, 7 metrics, "
            "three nulls",
            "{minutes:.0f} minutes",
            "settings_hans",
        ),
        (
            "`import lens_skills` on top of torch; `--help` of every command",
            "{import_added_seconds:+.2f} s; "
            "{help_fastest_seconds:.1f}–{help_slowest_seconds:.1f} s",
            "starting",
        ),
        (
            "SmolLM2, second load, imports not counted: HookedTransformer; TransformerBridge",
            "{second_load_hooked_seconds:.1f} s; {second_load_bridge_seconds:.1f} s",
            "starting",
        ),
        (
            "`make demo` after installation, three studies, a verdict on twenty neurons and the "
            "report: first card; whole",
            "**{demo_first_card_seconds:.0f} s**; **{demo_seconds:.0f} s**",
            "demo_time",
        ),
    ),
    "truth": (
        (
            "planted in SmolLM2, with 1,000 other neurons of each layer beside them, 4 skill "
            "neurons: found and *supports*",
            "{planted_recall:.0%}",
            "planted_planted",
        ),
        (
            "4 neurons that only carry the label: found; of these not called causal",
            "{decoys_found:.0%}; {decoys_rejected:.0%}",
            "planted_planted",
        ),
        (
            "4 neurons that only write the answer: left out by the search",
            "{writers_left_out:.0%}",
            "planted_planted",
        ),
        (
            "random neurons called causal, of {random_tested:.0f}",
            "**{false_causal:.0f}** ({random_no_effect:.0f} *no effect beyond δ*, "
            "{random_undecided:.0f} *undecided*)",
            "planted_random",
        ),
        (
            "coverage of the 95 % interval at 30 groups, 2,000 simulations: normal; exponential; "
            "lognormal of sd 1.5",
            "{interval_coverage_normal_30_groups:.0%}; "
            "{interval_coverage_exponential_30_groups:.0%}; "
            "{interval_coverage_lognormal_30_groups:.0%}",
            "planted_intervals",
        ),
        (
            "estimates of proposed edges: rank agreement with exact path patching, by target",
            "{circuit_ranks_lowest:.2f}, {circuit_ranks_highest:.2f}",
            "circuit",
        ),
        (
            "soft prompts of 8 vectors, one-digit sums and differences, {problems:.0f} of operands "
            "not trained on, right and stopped: three seeds; no prompt; best of two written",
            "**{seed_0:.2f}, {seed_1:.2f}, {seed_2:.2f}**; {no_prompt:.2f}; {best_written:.2f}",
            "settings_arithmetic",
        ),
        (
            "soft prompts of 4 vectors on real HANS rows of known sub-cases, right answer "
            "likelier: three seeds; no prompt",
            "**{known_seed_0:.2f}, {known_seed_1:.2f}, {known_seed_2:.2f}**; {known_no_prompt:.2f}",
            "settings_hans",
        ),
        (
            "the same on sub-cases never seen",
            "**{new_seed_0:.2f}, {new_seed_1:.2f}, {new_seed_2:.2f}**; {new_no_prompt:.2f}",
            "settings_hans",
        ),
        (
            "a skill shown where asked for, {texts:.0f} texts on {topics:.0f} topics: untrained "
            "prompt; trained on its own successes; difference with its 95 % interval",
            "{untrained:.0%}; {trained:.0%}; {difference:+.0%} "
            "[{difference_low:+.0%}, {difference_high:+.0%}]",
            "settings_skill_mix",
        ),
        (
            "rules of `ls.graders.detectors` on {fresh_positives:.0f} texts with a skill and "
            "{fresh_near_misses:.0f} near misses, none of which they had been tuned on (mended "
            "since)",
            "{fresh_found:.0f} found; {fresh_false_alarms:.0f} false alarms",
            "settings_skill_mix",
        ),
        (
            "accuracy of SmolLM2 without and with a forced BOS: agreement; arithmetic",
            "{agreement_before:.0%} → {agreement_forced:.0%}; {arithmetic_before:.0%} → "
            "{arithmetic_forced:.0%}",
            "forced_bos",
        ),
    ),
}
