"""What became of every recorded array: one row per group of names, by family.

Names may hold ``*`` for the parts that differ between cases (numbers of layers, cells, bins). Every array of a case
matches one name here, and every name here matches an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fate = Literal["reproduced", "given", "official defect", "not offered", "family not yet offered"]


@dataclass(frozen=True)
class Row:
    """A group of arrays of one fate.

    Parameters
    ----------
    names
        Patterns, separated by blanks.
    fate
        ``reproduced``: ours equals it; ``given``: a recorded draw, target or size that a test starts from;
        ``official defect``: recorded to show what the authors' code does wrong.
    where
        ``file::test`` that uses the arrays.
    why
        For what is not reproduced.
    """

    names: str
    fate: Fate
    where: str = ""
    why: str = ""


def _tokens(test: str) -> str:
    return f"test_golden_tokens::test_golden_{test}"


def _geneformer(test: str) -> str:
    return f"test_golden_geneformer::test_golden_{test}"


def _scgpt(test: str) -> str:
    return f"test_golden_scgpt::test_golden_scgpt_{test}"


def _scbert(test: str) -> str:
    return f"test_golden_scbert::test_golden_scbert_{test}"


def _nicheformer(test: str) -> str:
    return f"test_golden_nicheformer::test_golden_nicheformer_{test}"


def _scfoundation(test: str) -> str:
    return f"test_golden_scfoundation::test_golden_scfoundation_{test}"


def _scmulan(test: str) -> str:
    return f"test_golden_scmulan::test_golden_scmulan_{test}"


def _uce(test: str) -> str:
    return f"test_golden_uce::test_golden_uce_{test}"


def _genept(test: str) -> str:
    return f"test_golden_genept::test_golden_genept_{test}"


def _perturbation(test: str) -> str:
    return f"test_golden_perturbation::test_golden_{test}"


GENEFORMER = (
    Row("cell_index n_counts tokens length attention_mask", "reproduced", _tokens("geneformer_tokens")),
    Row(
        "rank_tokens_full rank_values_full rank_length_full",
        "reproduced",
        _tokens("geneformer_ranking_is_bit_equal"),
    ),
    Row(
        "official_rank_tokens_full official_rank_length_full",
        "official defect",
        _tokens("geneformer_official_lists_differ_only_in_ties_and_explicit_zeros"),
        "ties in the order of an unstable sort, explicit zeros become tokens",
    ),
    Row(
        "official_tokens official_length official_counts_column official_differs official_same_set",
        "official defect",
        _tokens("geneformer_official_inputs_agree_where_recorded_as_equal"),
        "the same lists, cut; equal to ours where the record says so",
    ),
    Row("official_output_row_order", "official defect", why="rows come back sorted by length; ours keep their order"),
    Row("dup_summed_*", "reproduced", _tokens("geneformer_sums_duplicated_ids")),
    Row("dup_official_rank_tokens", "official defect", why="the same gene twice in a cell; ours are summed"),
    Row("hidden_states", "reproduced", _geneformer("hidden_states")),
    Row("emb_cell_layer*", "reproduced", _geneformer("cell_embeddings_in_every_mode_and_layer")),
    Row("gene_emb_*", "reproduced", _geneformer("gene_embeddings")),
    Row("state_emb_*", "reproduced", _geneformer("state_embeddings")),
    Row("mlm_input_ids mlm_labels mlm_attention_mask", "given", _geneformer("masked_language_model_logits_and_loss")),
    Row("mlm_logits mlm_logits_at_masked mlm_loss", "reproduced", _geneformer("masked_language_model_logits_and_loss")),
    Row("cell_clf_labels", "given", _geneformer("cell_classifier")),
    Row(
        "cell_clf_logits* cell_clf_pred_official_batches cell_clf_loss cell_clf_pooled",
        "reproduced",
        _geneformer("cell_classifier"),
    ),
    Row("gene_clf_labels", "given", _geneformer("gene_classifier")),
    Row("gene_clf_logits gene_clf_loss gene_clf_*_flat", "reproduced", _geneformer("gene_classifier")),
    Row("isp_target_token isp_all_cell", "given", _perturbation("every_gene_in_turn")),
    Row(
        "isp_delete_tokens isp_delete_lengths isp_overexpress_tokens isp_overexpress_lengths "
        "isp_overexpress_original_*",
        "reproduced",
        _perturbation("perturbed_lists"),
    ),
    Row("isp_delete_cos_* isp_overexpress_cos_*", "reproduced", _perturbation("effect_of_a_perturbation")),
    Row("isp_*_shift_to_*", "reproduced", _perturbation("shift_towards_a_state")),
    Row(
        "isp_all_*_tokens isp_all_*_cos isp_all_delete_gene_cos_official",
        "reproduced",
        _perturbation("every_gene_in_turn"),
    ),
    Row(
        "isp_all_overexpress_gene_cos_official",
        "official defect",
        _perturbation("every_gene_in_turn"),
        "each value is attributed to the gene one rank too low; the values are ours",
    ),
)

GENEFORMER_V2 = (Row("emb_cls_layer*", "reproduced", _geneformer("cell_embeddings_in_every_mode_and_layer")),)

SCGPT = (
    Row("binning.*.input binning.*.rand", "given", _tokens("scgpt_bins_and_edges_of_single_rows")),
    Row(
        "binning.*.edges binning.*.out binning.*.out_oneside",
        "reproduced",
        _tokens("scgpt_bins_and_edges_of_single_rows"),
    ),
    Row(
        "rand.embed_* embed.sampled_cells embed.max_length embed.batch_size", "given", _tokens("scgpt_zero_shot_tokens")
    ),
    Row(
        "embed.id_in_vocab embed.n_tokens embed.batch_seq_len embed.gene embed.expr fwd.gene fwd.expr fwd.padding_mask",
        "reproduced",
        _tokens("scgpt_zero_shot_tokens"),
    ),
    Row("embed.cls_unnormalised embed.X_scGPT", "reproduced", _scgpt("cell_embeddings")),
    Row("value_encoder.input", "given", _scgpt("input_terms")),
    Row("fwd.gene_encoder fwd.value_encoder fwd.total_embs value_encoder.output", "reproduced", _scgpt("input_terms")),
    Row("fwd.layer*", "reproduced", _scgpt("hidden_states")),
    Row("fwd.gene_embedding_input", "reproduced", _scgpt("gene_embedding_before_any_context")),
    Row(
        "fwd.cell_emb_avgpool_* fwd.cell_emb_wpool_*",
        "official defect",
        _scgpt("poolings_that_count_padding"),
        "padding counts, so a cell depends on its batch and on the kernel; reproduced with padding made on purpose, "
        "the pooling that is offered leaves it out",
    ),
    Row(
        "fwd.prenorm_flash_valid0",
        "official defect",
        why="pre_norm means one thing in the flash layer and nothing in the torch layer; no checkpoint uses it",
    ),
    Row("mlm.masked_expr", "given", _scgpt("masked_outputs_and_losses")),
    Row(
        "mlm.mlm_output mlm.mvc_output mlm.cell_emb mlm.loss_* mlm.mre",
        "reproduced",
        _scgpt("masked_outputs_and_losses"),
    ),
    Row("generate.output generate.output_with_values", "reproduced", _scgpt("expression_from_a_cell_prompt")),
    Row(
        "mvc_concat.* mvc_sum.*",
        "not offered",
        why="decoders with weights of their own that no published checkpoint has, and that fail in the authors' model",
    ),
    Row("rand.gen_perms gen.cells gen.ratio", "given", _tokens("scgpt_generative_parts")),
    Row(
        "gen.pcpt_gene gen.pcpt_expr gen.gen_gene gen.gen_expr_target", "reproduced", _tokens("scgpt_generative_parts")
    ),
    Row("gen.layer* gen.pcpt_preds gen.gen_preds gen.cell_emb gen.mvc_output", "reproduced", _scgpt("generative_pass")),
    Row(
        "gen.loss_ecs gen.cellprompt_* gen.losses_mse_mvc_gen gen.mre",
        "reproduced",
        _scgpt("generative_losses_and_cell_prompt"),
    ),
    Row("gen.pcptonly_*", "reproduced", _scgpt("perceived_tokens_alone")),
    Row("rand.prep", "given", _tokens("scgpt_preparation")),
    Row("prep.*", "reproduced", _tokens("scgpt_preparation")),
    Row("rand.ann_choice", "given", _tokens("scgpt_annotation_tokens")),
    Row("ann.genes ann.values", "reproduced", _tokens("scgpt_annotation_tokens")),
    Row("ann.labels", "given", _scgpt("annotation")),
    Row("ann.cls_output ann.cell_emb ann.mlm_output ann.pred ann.loss_cls", "reproduced", _scgpt("annotation")),
    Row("rand.int_choice int.cells", "given", _tokens("scgpt_integration_tokens_with_zeros")),
    Row("int.genes int.values", "reproduced", _tokens("scgpt_integration_tokens_with_zeros")),
    Row("rand.int_mask_choice", "given", _scgpt("integration_masks")),
    Row("int.masked_values", "reproduced", _scgpt("integration_masks")),
    Row(
        "int.total_embs_after_dsbn int.final_hidden int.cell_emb int.X_scGPT",
        "reproduced",
        _scgpt("integration_states_and_embedding"),
    ),
    Row(
        "int.mlm_output int.mlm_zero_probs int.mvc_output int.mvc_zero_probs int.dab_output int.loss_ecs int.losses "
        "int.mlm_sampled",
        "reproduced",
        _scgpt("integration_outputs_and_losses"),
    ),
    Row("pert.genes pert.values", "reproduced", _tokens("scgpt_preparation")),
    Row("pert.flags", "given", _scgpt("perturbation")),
    Row("pert.total_embs_cell0 pert.mlm_output", "reproduced", _scgpt("perturbation")),
)

NICHEFORMER = (
    Row("specie assay modality tokens tokens_stable_sort", "reproduced", _tokens("nicheformer_tokens")),
    Row("X_aligned scores n_genes_detected", "reproduced", _tokens("nicheformer_scores_are_bit_equal")),
    Row("mean_used_*", "reproduced", _tokens("nicheformer_technology_scales")),
    Row("input_ids key_padding_mask", "reproduced", _tokens("nicheformer_model_input")),
    Row(
        "hf_input_ids hf_input_ids_pad1 hf_attention_mask",
        "reproduced",
        _tokens("nicheformer_hub_input_without_technology_mean"),
    ),
    Row("hf_input_ids_xenium_mean_raw", "official defect", why="unmeasured genes of a technology become tokens"),
    Row(
        "tokens_raw_means emb_raw_means",
        "official defect",
        _nicheformer("embedding_of_raw_technology_means"),
        "unmeasured genes of a technology become tokens; the embedding is reproduced from these tokens",
    ),
    Row(
        "emb_no_metadata",
        "official defect",
        _nicheformer("embedding_without_context_loses_three_genes"),
        "without context tokens three genes are dropped in their place; reproduced from such tokens",
    ),
    Row("hidden_*", "reproduced", _nicheformer("hidden_states_of_tokens_and_of_padding")),
    Row("gene_embeddings", "reproduced", _nicheformer("gene_embeddings")),
    Row("emb_layer*", "reproduced", _nicheformer("official_pooling_of_every_layer")),
    Row("emb_masked_mean*", "reproduced", _nicheformer("mean_over_real_tokens")),
    Row("hf_emb_pad1", "reproduced", _nicheformer("hub_embedding")),
    Row(
        "hf_emb",
        "official defect",
        _nicheformer("hub_embedding"),
        "cells are filled up with the mask token; reproduced with that padding",
    ),
    Row("mlm_seed", "not offered", why="the seed of the authors' masking; the masks drawn with it are recorded"),
    Row(
        "mlm_cells mlm_real mlm_masked_indices mlm_mask mlm_key_padding_mask mlm_targets",
        "given",
        _nicheformer("masked_genes"),
    ),
    Row("mlm_logits mlm_loss", "reproduced", _nicheformer("masked_genes")),
    Row("region", "given", _nicheformer("fine_tuned_checkpoint")),
    Row(
        "ft_cls_logits ft_cls_loss ft_cls_pred ft_cls_linear_head",
        "reproduced",
        _nicheformer("fine_tuned_checkpoint"),
    ),
    Row(
        "ft_cls_extractor_sum_linear_head ft_cls_extractor_sum_pooler_*",
        "given",
        _nicheformer("fine_tuned_sum_of_layers_through_the_extractor"),
    ),
    Row(
        "ft_cls_extractor_sum_logits ft_cls_extractor_sum_loss ft_cls_extractor_sum_pred",
        "reproduced",
        _nicheformer("fine_tuned_sum_of_layers_through_the_extractor"),
    ),
    Row("ft_cls_pool_cls_linear_head", "given", _nicheformer("fine_tuned_with_a_cls_token")),
    Row(
        "ft_cls_pool_cls_logits ft_cls_pool_cls_loss ft_cls_pool_cls_pred",
        "reproduced",
        _nicheformer("fine_tuned_with_a_cls_token"),
    ),
    Row("X_niche_1 ft_reg_linear_head", "given", _nicheformer("fine_tuned_regression_of_neighbours")),
    Row("ft_reg_logits ft_reg_loss", "reproduced", _nicheformer("fine_tuned_regression_of_neighbours")),
)

SCBERT = (
    Row("tokens lognorm", "reproduced", _tokens("scbert_tokens")),
    Row("kept_min_genes", "not offered", why="cells are filtered by their owner, not by a tokenizer"),
    Row("emb_in hidden_layer* encodings", "reproduced", _scbert("hidden_states")),
    Row("enc_last_token enc_mean_all enc_mean_genes enc_max_all", "reproduced", _scbert("cell_embeddings")),
    Row("mlm_logits", "reproduced", _scbert("levels_of_the_pretrained_model")),
    Row("cell0_layer0_*", "reproduced", _scbert("attention_of_one_cell")),
    Row("key_stabiliser_single", "reproduced", _scbert("key_maximum_of_each_cell")),
    Row(
        "encodings_batch_last_token mlm_logits_batch key_stabiliser_batch key_stabiliser_batch_of_all "
        "enc_mean_all_batch_of_all",
        "official defect",
        _scbert("official_batches"),
        "the maximum of the keys is taken over the batch, so a cell depends on its batch; reproduced with that maximum",
    ),
    Row(
        "attn_sum_fp32",
        "official defect",
        _scbert("official_attention_sums"),
        "the weights are those of a second evaluation on other states, not those that made the output; reproduced by a "
        "loop in the test",
    ),
    Row("mlm_cells mlm_rand_*", "given", _scbert("masks")),
    Row("mlm_masked_input mlm_labels", "reproduced", _scbert("masks")),
    Row(
        "mlm_batch_logits mlm_loss mlm_accuracy mlm_predicted",
        "official defect",
        _scbert("masked_objective_of_an_official_batch"),
        "the masked objective with the maximum over the batch; reproduced with that maximum",
    ),
    Row(
        "ft_trainable_names",
        "not offered",
        why="which parameters the authors' fine-tuning leaves free; the second to last layer instead of the last",
    ),
    Row("ft_logits ft_prob predict_idx ft_enc_last_token", "reproduced", _scbert("classifier")),
    Row("ft_head_*", "reproduced", _scbert("layers_of_the_classifier")),
    Row("predict_names*", "reproduced", _scbert("names_of_classes_and_of_what_is_none_of_them")),
    Row("label_idx", "given", _scbert("names_of_classes_and_of_what_is_none_of_them")),
    Row(
        "ft_logits_batch_of_3 ft_loss_first3",
        "official defect",
        _scbert("classifier_on_an_official_batch"),
        "the fine-tuned classifier with the maximum over the batch; reproduced with that maximum",
    ),
)

SCMULAN = (
    Row("gsu_* lognorm_gene_set prompt_*", "reproduced", _tokens("scmulan_prompts")),
    Row("cell[0-9]_*", "reproduced", _scmulan("hidden_states")),
    Row("logits_exp_prompt", "reproduced", _scmulan("levels_that_words_would_have")),
    Row("gen_* coarse_type fine_type", "reproduced", _scmulan("annotation_word_by_word")),
    Row("step_logits_cls", "reproduced", _scmulan("logits_of_every_step")),
    Row("cell_embedding", "reproduced", _scmulan("cell_embeddings_where_the_authors_read_them")),
    Row("kv_*", "reproduced", _scmulan("annotation_with_cached_keys")),
    Row("sample_*_prompt_*", "reproduced", _scmulan("prompts_of_generated_cells")),
    Row("sample_*_draws", "given", _scmulan("sampled_cells")),
    Row("sample_*_full_ids sample_*_full_expr sample_*_full_probs", "reproduced", _scmulan("sampled_cells")),
    Row("sample_*_top5_ids sample_*_top5_expr sample_*_top5_probs", "reproduced", _scmulan("sampled_cells")),
    Row("sample_*_expression_row", "reproduced", _scmulan("expression_of_sampled_cells")),
    Row("greedy_*", "reproduced", _scmulan("likeliest_cells")),
    Row("loss_logits_* loss_total loss_cls loss_exp", "reproduced", _scmulan("training_objective")),
    Row(
        "loss_idx loss_x_expr loss_targets loss_y_expr loss_xlen loss_x_prefix_len",
        "given",
        _scmulan("training_objective"),
    ),
)

SCFOUNDATION = (
    Row(
        "aligned_counts input_T input_A gene_x_t4_F tok_* gb_pos_ids_enc gb_enc_padmask ft_x mae_target",
        "reproduced",
        _tokens("scfoundation_tokens"),
    ),
    Row("TS__cell_*", "reproduced", _tokens("scfoundation_depth_tokens")),
    Row("bulk_input_*", "given", _tokens("scfoundation_bulk_depth_tokens")),
    Row("TS__bulk_*", "reproduced", _tokens("scfoundation_bulk_depth_tokens")),
    Row("trap_frac_input", "given", _tokens("scfoundation_keeps_depth_tokens_that_the_official_code_loses")),
    Row(
        "trap_frac_pos_ids",
        "official defect",
        _tokens("scfoundation_keeps_depth_tokens_that_the_official_code_loses"),
        "a depth below 1 is taken for no token",
    ),
    Row(
        "trap_frac_cell_*",
        "official defect",
        _scfoundation("official_embedding_without_the_source_depth"),
        "the embedding without that token; equal to ours if it is taken away",
    ),
    Row("trap_dup_*", "official defect", why="a gene of the list twice shifts all later genes"),
    Row("cell_*_F_*", "reproduced", _scfoundation("cell_embeddings_from_counts")),
    Row("cell_*_T_* cell_*_A_*", "reproduced", _scfoundation("cell_embeddings_of_normalised_values")),
    Row("bulk_all_* bulk_max_*", "reproduced", _scfoundation("bulk_embeddings")),
    Row("single*", "reproduced", _scfoundation("states_of_one_cell")),
    Row("gene_f1_F", "reproduced", _scfoundation("genes_in_their_cells")),
    Row("gene_expression_*", "reproduced", _scfoundation("predicted_expression")),
    Row("gene_batch_*", "reproduced", _scfoundation("genes_of_an_official_batch")),
    Row(
        "gb_token_emb* gb_enc_in gb_enc_layer* gb_enc_out gb_dec_*",
        "reproduced",
        _scfoundation("states_of_an_official_batch"),
    ),
    Row("g0_kernel_*", "reproduced", _scfoundation("features_of_the_linear_attention")),
    Row("redraw_seed0", "reproduced", _scfoundation("new_features_are_drawn_as_recorded")),
    Row("grid_values", "given", _scfoundation("values_as_a_curve")),
    Row("grid_emb grid_weight", "reproduced", _scfoundation("values_as_a_curve")),
    Row("mae_input mae_mask", "given", _scfoundation("training_objective_of_an_official_batch")),
    Row("mae_pred mae_loss_masked_mse", "reproduced", _scfoundation("training_objective_of_an_official_batch")),
    Row("ft_fc1_* ft_bn_*", "given", _scfoundation("classifier_on_genes_without_depths")),
    Row("ft_logits_single", "reproduced", _scfoundation("classifier_on_genes_without_depths")),
    Row(
        "ft_logits_batch",
        "official defect",
        _scfoundation("classifier_on_genes_without_depths"),
        "padding enters the maximum, so a cell depends on its batch; equal to ours where there is no padding",
    ),
)

UCE = (
    Row(
        "*_obs_names *_var_names",
        "given",
        _tokens("uce_tokens_chromosomes_and_starts"),
    ),
    Row(
        "*_gene_token_id *_gene_chrom_code *_gene_start",
        "reproduced",
        _tokens("uce_tokens_chromosomes_and_starts"),
    ),
    Row("h?_p mo_p ck_p", "reproduced", _tokens("uce_weights")),
    Row("h?_choice_idx h?_chrom_order mo_ch* ck_ch*", "given", _tokens("uce_sentences")),
    Row(
        "h?_tokens h?_length h?_mask mo_tokens mo_length mo_mask ck_tokens ck_length ck_mask",
        "reproduced",
        _tokens("uce_sentences"),
    ),
    Row("pt_masked_cols pt_chrom_order pt_rows pt_choice_idx", "given", _tokens("uce_pretraining_sentences")),
    Row("pt_tokens pt_length", "reproduced", _tokens("uce_pretraining_sentences")),
    Row("*_emb_single *_emb_batched_inf_mask", "reproduced", _uce("cell_embeddings_of_every_species")),
    Row("hf_s1_*", "reproduced", _uce("states_of_a_cell_alone")),
    Row(
        "*_emb_official_batched",
        "official defect",
        _uce("official_batches_are_right_for_the_longest_cells"),
        "padding is attended with weight, so a cell depends on its batch; equal to ours where there is no padding",
    ),
    Row(
        "hf_b0_mask hf_b0_input hf_b0_encoder hf_b0_pos",
        "reproduced",
        _uce("input_and_the_states_of_the_longest_cells_of_an_official_batch"),
    ),
    Row(
        "hf_b0_layer* hf_b0_gene_output",
        "official defect",
        _uce("input_and_the_states_of_the_longest_cells_of_an_official_batch"),
        "padding is attended with weight, so a cell depends on its batch; equal to ours where there is no padding",
    ),
    Row("head_cells head_gene_cols head_token_ids", "given", _uce("is_a_gene_expressed")),
    Row("head_logits_*", "reproduced", _uce("is_a_gene_expressed")),
    Row("head_gene_layer_raw", "reproduced", _uce("gene_layer_of_raw_proteins")),
    Row("pt_query_cols pt_labels", "given", _uce("pretraining_example_with_its_gradients")),
    Row(
        "pt_emb pt_logits_unit_protein pt_loss pt_grad:*",
        "reproduced",
        _uce("pretraining_example_with_its_gradients"),
    ),
)

GENEPT = (
    Row("lognorm", "reproduced", _genept("log_normalised_counts")),
    Row("gene_matrix has_embedding", "reproduced", _genept("vectors_of_genes")),
    Row("genept_w_*", "reproduced", _genept("w_cells")),
)

INVENTORY: dict[str, tuple[Row, ...]] = {
    "geneformer_v1": GENEFORMER,
    "geneformer_v2": (*GENEFORMER, *GENEFORMER_V2),
    "scgpt": SCGPT,
    "nicheformer": NICHEFORMER,
    "scbert": SCBERT,
    "scmulan": SCMULAN,
    "scfoundation": SCFOUNDATION,
    "uce": UCE,
    "genept": GENEPT,
}
